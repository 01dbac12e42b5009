"""Which layers a compensated rounding works on together, and the memory that this takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fedsim.quant.rounding.task import RoundingTask


def batches(tasks: Sequence[RoundingTask], rows: int, batch_bytes: int) -> Iterator[list[int]]:
    """Yield indices of tasks with moments and equal shapes, as many as memory allows.

    Args:
        tasks: of a rounding.
        rows: of one weight that are worked on together, at most.
        batch_bytes: of all `workspace` of a batch, unless it is one task.
    """
    by_shape: dict[tuple, list[int]] = {}
    for index, task in enumerate(tasks):
        if task.moments is not None:
            by_shape.setdefault((task.shape, task.moments.shape), []).append(index)
    for (shape, moments), members in by_shape.items():
        size = max(1, batch_bytes // workspace(shape, moments, rows))
        for start in range(0, len(members), size):
            yield members[start : start + size]


def workspace(shape: Sequence[int], moments: Sequence[int], rows: int) -> int:
    """Return the bytes of the float64 arrays for one weight of a shape (N, ...), of which so many
    rows are worked on together, with moments (G, K, K): the triangular factors, and three arrays
    as large as the rows."""
    return 8 * (3 * min(shape[0], rows) * moments[0] * moments[1] + math.prod(moments))
