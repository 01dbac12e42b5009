"""Sensitivities as whole numbers that can be added, and the mean that their sum stands for."""

from __future__ import annotations

import numpy as np

from fedsim.errors import FedsimError
from fedsim.privacy.bounds import Bounds, denormalize, normalize

STEPS = (1 << 20) - 1
"""Of the range between a layer's bounds, in the logarithm: finer than any plan can tell."""
MAX_MEMBERS = 1 << 12
"""Whose codes add up to less than 2^32."""


def encode(sensitivity: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Return the nearest step of each clipped sensitivity, uint32 (L,)."""
    return np.rint(normalize(sensitivity, bounds) * STEPS).astype(np.uint32)


def decode(total: np.ndarray, members: int, bounds: Bounds) -> np.ndarray:
    """Return the geometric mean of the members' clipped sensitivities, float64 (L,).

    Args:
        total: the sum of their codes, uint32 (L,).
        members: how many were added.
        bounds: as `encode` had them.

    Raises:
        FedsimError: a sum that so many members cannot have.
    """
    if total.max(initial=0) > members * STEPS:
        raise FedsimError(
            f"a sum of {int(total.max())} is more than {members} members can have: one of them"
            " sent no code, or the masks did not come off"
        )
    return denormalize(total / (members * STEPS), bounds)
