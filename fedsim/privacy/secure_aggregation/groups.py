"""Groups of clients for secure aggregation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.base.seeds import client_rng


def make_groups(clients: Sequence[str], size: int, seed: int) -> list[list[str]]:
    """Return groups of `size` clients or more, drawn from the seed; [] if there are too few."""
    ordered = sorted(clients)
    order = client_rng(seed, "", "cohort").permutation(len(ordered))
    if len(ordered) < size:
        return []
    parts = np.array_split(order, len(ordered) // size)
    return [sorted(ordered[i] for i in part) for part in parts]
