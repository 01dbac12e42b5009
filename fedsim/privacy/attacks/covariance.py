"""The covariance of few vectors with many features."""

from __future__ import annotations

import numpy as np

_FLOOR = 1e-6  # the variance of residuals that are all zero


def shrunken_covariance(residuals: np.ndarray) -> np.ndarray:
    """Return the covariance (d, d) of residuals (n, d) about zero; it is never singular.

    It is mixed with its mean variance in every direction, by as much as makes held-out residuals
    likeliest (scikit-learn's recipe for `ShrunkCovariance`). Ledoit and Wolf's share is best for
    the covariance as a whole, but hides the directions of little variance, and a release gives away
    most where its noise is least.
    """
    from sklearn.covariance import ShrunkCovariance
    from sklearn.model_selection import GridSearchCV

    if not residuals.any():
        return _FLOOR * np.eye(residuals.shape[1])
    parts = 3 if len(residuals) >= 6 else 2  # one residual has no covariance
    search = GridSearchCV(
        ShrunkCovariance(assume_centered=True), {"shrinkage": np.logspace(-6, 0, 7)}, cv=parts
    )
    return search.fit(residuals).best_estimator_.covariance_
