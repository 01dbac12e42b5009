"""Released vectors as attacks take them: finite numbers, one row per release."""

from __future__ import annotations

import numpy as np

from fedsim.errors import FedsimError


def checked_vectors(vectors: np.ndarray, release: str) -> np.ndarray:
    """Return vectors as float64 (n, d); d may be 0.

    Raises:
        FedsimError: if a number is not finite.
    """
    checked = np.asarray(vectors, np.float64)
    if checked.ndim != 2:
        raise ValueError(f"released vectors have shape {checked.shape}, which is not (n, d)")
    if not np.isfinite(checked).all():
        row = int(np.argmin(np.isfinite(checked).all(axis=1)))
        raise FedsimError(
            f"release {release!r} has a number in row {row} that is not finite; leave out the"
            " clients whose release failed"
        )
    return checked


def carries_nothing(vectors: np.ndarray) -> bool:
    """Return whether all rows of vectors (n, d) are equal, so that nothing can be inferred."""
    return bool((vectors == vectors[:1]).all())


def random_state(rng: np.random.Generator) -> int:
    """Return a seed for scikit-learn, which takes no generator."""
    return int(rng.integers(2**31))
