"""The exact bytes of every model file that an allocator can choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.base.units import MB
from fedsim.errors import BudgetError


@dataclass(frozen=True)
class Sizes:
    """What each choice of bit depths costs, in exact bytes of the delivered file.

    `depths` are the legal bit depths, ascending (D,); `layer_bytes` is int64 (L, D): the bytes of
    layer l at depth d; `fixed_bytes` is the rest of every file (leftovers, scales, header).
    """

    depths: tuple[int, ...]
    layer_bytes: np.ndarray
    fixed_bytes: int

    def total(self, bits: Sequence[int]) -> int:
        """Return the bytes of the file whose layer l has `bits[l]` bits, each a legal depth."""
        column = [self.depths.index(depth) for depth in bits]
        return self.fixed_bytes + int(self.layer_bytes[np.arange(len(column)), column].sum())

    def restricted(self, depths: Sequence[int]) -> Sizes:
        """Return the table with only these of its depths, ascending."""
        columns = [self.depths.index(depth) for depth in depths]
        return Sizes(tuple(depths), self.layer_bytes[:, columns], self.fixed_bytes)


def smallest(sizes: Sizes) -> int:
    """Return the bytes of the smallest feasible model file: every layer at the smallest legal
    depth."""
    return sizes.fixed_bytes + int(sizes.layer_bytes[:, 0].sum())


def too_small(sizes: Sizes, budget: int) -> BudgetError:
    """Return the error that names the smallest feasible file, larger than `budget` bytes."""
    min_bytes = smallest(sizes)
    return BudgetError(
        f"a budget of {budget:,} bytes ({budget / MB:.2f} MB) is below the smallest feasible model "
        f"file of {min_bytes:,} bytes ({np.ceil(min_bytes / MB * 100) / 100:.2f} MB: "
        f"{sizes.depths[0]} bits in every layer); raise the budget or allow smaller bit depths"
    )
