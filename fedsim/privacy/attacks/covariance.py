"""The covariance of few vectors with many features."""

from __future__ import annotations

import numpy as np

_FLOOR = 1e-6  # the variance where all residuals are zero


def shrunken_covariance(residuals: np.ndarray) -> np.ndarray:
    """Return the covariance (d, d) of residuals (n, d) about zero; it is never singular.

    It is shrunk towards its mean variance in every direction, by the share that maximizes the
    likelihood of held-out residuals (scikit-learn's recipe for `ShrunkCovariance`). The share of
    Ledoit and Wolf is best for the covariance as a whole, but it blurs the directions of small
    variance, where a release leaks most.
    """
    from sklearn.covariance import ShrunkCovariance
    from sklearn.model_selection import GridSearchCV

    if not residuals.any():
        return _FLOOR * np.eye(residuals.shape[1])
    parts = 3 if len(residuals) >= 6 else 2  # a part needs two residuals
    search = GridSearchCV(
        ShrunkCovariance(assume_centered=True), {"shrinkage": np.logspace(-6, 0, 7)}, cv=parts
    )
    return search.fit(residuals).best_estimator_.covariance_
