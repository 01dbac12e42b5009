"""Sensitivities as whole numbers that can be added, and the mean that their sum encodes."""

from __future__ import annotations

import numpy as np

from fedsim.errors import FedsimError
from fedsim.privacy.bounds import Bounds, denormalize, normalize

STEPS = (1 << 20) - 1
"""Between the bounds of a layer, in the logarithm: fine enough that no plan depends on it."""
MAX_MEMBERS = 1 << 12
"""The codes of this many members add up to less than 2^32."""


def encode(sensitivity: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Return the number of the nearest step of each clipped sensitivity, uint32 (L,)."""
    return np.rint(normalize(sensitivity, bounds) * STEPS).astype(np.uint32)


def decode(total: np.ndarray, members: int, bounds: Bounds) -> np.ndarray:
    """Return the geometric mean of the members' clipped sensitivities, float64 (L,).

    Args:
        total: the sum of their codes, uint32 (L,).
        members: number of members in the sum.
        bounds: as given to `encode`.

    Raises:
        FedsimError: if the sum is larger than that of this many members can be.
    """
    if total.max(initial=0) > members * STEPS:
        raise FedsimError(
            f"the sum {int(total.max())} exceeds the maximum of {members} members: a member sent a"
            " wrong code, or the masks were not removed; start a new group"
        )
    return denormalize(total / (members * STEPS), bounds)
