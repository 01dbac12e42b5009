"""Which weights share a scale, and whether they share a zero point too.

A weight (N, ...) is seen as a matrix (N, K): N output channels, K inputs of each. Imports no torch,
so that scenarios are checked without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.quant.packing import packed_bytes
from fedsim.registry import Registry

SCALE_BYTES = 2
"""Bytes of one stored scale (float16)."""


@dataclass(frozen=True)
class Granularity:
    """Which weights of a matrix (N, K) share a scale."""

    summary: str
    per_channel: bool = True
    """Whether each of the N output channels has scales of its own."""
    group: int | None = None
    """Inputs that share a scale; None for all K. The last group of a channel may be shorter."""

    def grid(self, n: int, k: int) -> tuple[int, int]:
        """Return (rows, columns) of the scales of a matrix (n, k)."""
        return n if self.per_channel else 1, 1 if self.group is None else -(-k // self.group)


GRANULARITIES: Registry[Granularity] = Registry("granularity")
GRANULARITIES.add(
    "per_tensor", Granularity("One scale per weight, as in the paper.", per_channel=False)
)
GRANULARITIES.add(
    "per_channel",
    Granularity("One scale per output channel: 2 bytes more for each, far better below 6 bits."),
)
GROUPS = (32, 64, 128)
for _size in GROUPS:
    GRANULARITIES.add(
        f"group_{_size}",
        Granularity(f"One scale per {_size} inputs of each output channel.", group=_size),
    )


@dataclass(frozen=True)
class WeightFormat:
    """How the codes of a weight are turned back into numbers.

    W' = S (q - Z), one S for the weights that share a scale, q in 0..2^b - 1. Z is 2^(b-1), or with
    `zero_points` a stored integer beside each scale, as wide as the codes.
    """

    granularity: str = "per_channel"
    """A name in `GRANULARITIES`."""
    zero_points: bool = False

    def grid(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return (rows, columns) of the scales of a weight of this shape."""
        return GRANULARITIES[self.granularity].grid(shape[0], math.prod(shape[1:]))

    def n_scales(self, shape: Sequence[int]) -> int:
        """Return how many scales a weight of this shape has."""
        rows, columns = self.grid(shape)
        return rows * columns

    def zero_bytes(self, shape: Sequence[int], bits: int) -> int:
        """Return the bytes of the packed zero points of a weight of this shape at `bits` bits."""
        return packed_bytes(self.n_scales(shape), bits) if self.zero_points else 0

    def code_bytes(self, shape: Sequence[int], bits: int) -> int:
        """Return the bytes of codes and zero points, which depend on the bit depth."""
        return packed_bytes(math.prod(shape), bits) + self.zero_bytes(shape, bits)

    def scale_bytes(self, shape: Sequence[int]) -> int:
        """Return the bytes of the scales, which are the same at every bit depth."""
        return SCALE_BYTES * self.n_scales(shape)


PER_TENSOR, PER_CHANNEL = WeightFormat("per_tensor"), WeightFormat("per_channel")
