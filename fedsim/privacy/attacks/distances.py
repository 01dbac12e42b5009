"""Distances between the releases of two sessions, learned from speakers that are in both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fedsim.privacy.attacks.covariance import shrunken_covariance

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""f(releases of the first session (m, d), of the second (m, d)) -> distances of each release of the
second (rows) from each of the first (columns), float64 (m, m)."""
_DIRECTIONS = (4, 16, 64)


def learned_distances(first: np.ndarray, second: np.ndarray) -> dict[str, Distance]:
    """Return distances by name, learned from releases of speakers in two sessions, (n, d) each.

    They compare releases in three kinds of spaces, each by Euclidean distance and by angle:

    - standardised: each feature by its mean and deviation in its session;
    - whitened: then scaled so that the two releases of a speaker differ equally in all directions;
    - discriminant: the directions of the whitened space in which speakers differ most. This is
      linear discriminant analysis with a shrunken covariance within speakers; scikit-learn's own
      would shrink the covariance of each speaker's two releases separately.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scalers = StandardScaler().fit(first), StandardScaler().fit(second)
    ours, theirs = scalers[0].transform(first), scalers[1].transform(second)
    size, axes = np.linalg.eigh(shrunken_covariance(ours - theirs))
    whitening = axes / np.sqrt(size)
    speakers = (ours + theirs) @ whitening / 2
    rank = min(len(speakers) - 1, speakers.shape[1])
    spread = PCA(rank, svd_solver="full").fit(speakers).components_.T
    matrices = {"standardised": np.eye(first.shape[1]), "whitened": whitening}
    for k in _DIRECTIONS:
        if k < rank:
            matrices[f"{k} discriminant directions"] = whitening @ spread[:, :k]
    return {
        f"{name}{how}": partial(_distance, scalers, matrix, by_angle)
        for name, matrix in matrices.items()
        for how, by_angle in ((", Euclidean", False), (", by angle", True))
    }


def _distance(
    scalers: tuple[Any, Any],
    matrix: np.ndarray,
    by_angle: bool,
    first: np.ndarray,
    second: np.ndarray,
) -> np.ndarray:
    """Return the distances of probes (rows) from enrolled speakers (columns), in one space."""
    from scipy.spatial.distance import cdist
    from sklearn.preprocessing import normalize

    enrolled, probes = (
        scaler.transform(part) @ matrix
        for scaler, part in zip(scalers, (first, second), strict=True)
    )
    if by_angle:
        enrolled, probes = normalize(enrolled), normalize(probes)
    # Rounded, so that equal releases are equally near in spite of floating-point errors.
    return np.round(cdist(probes, enrolled), 9)
