"""Evenly spread samples of bounded size from streams of unknown length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch


class Sample:
    """A bounded sample of a stream: of every `stride` rows one, the stride doubling as it fills.

    Rows may be scalars (`row_shape` ()) or arrays. Two samples that are given the same counts keep
    the same places of their streams, so that, say, inputs and gradients stay side by side.
    """

    def __init__(self, capacity: int, row_shape: tuple[int, ...] = ()) -> None:
        self._capacity = capacity
        self._row_shape = row_shape
        self._parts: list[np.ndarray] = []
        self._used = 0
        self._stride = 1
        self._offered = 0
        self._rng: np.random.Generator | None = None  # most samples never overflow

    @property
    def values(self) -> np.ndarray:
        """What has been kept, float32 (n, *row_shape)."""
        if len(self._parts) != 1:
            nothing = np.empty((0, *self._row_shape), np.float32)
            self._parts = [np.concatenate([nothing, *self._parts])]
        return self._parts[0]

    def room_for(self, n: int) -> int:
        """Return how many of the `n` rows that come next to keep; thin what is kept if need be."""
        while self._used + self._due(n) > self._capacity:
            # One of each two neighbours, at random: a fixed choice would follow the channels'
            # order.
            half = self._used // 2
            if self._rng is None:
                self._rng = np.random.default_rng(0)
            pick = 2 * np.arange(half) + self._rng.integers(0, 2, half)
            self._parts = [self.values[pick]]
            self._used = half
            self._stride *= 2
        keep = self._due(n)
        self._offered += n
        return keep

    def _due(self, n: int) -> int:
        """Return how many of the `n` rows that come next lie a whole number of strides from the
        first of the stream: often none, where batches are smaller than the stride."""
        return -(-(self._offered + n) // self._stride) + -self._offered // self._stride

    def add(self, rows: np.ndarray) -> None:
        """Take over rows float32 (m, *row_shape) for which `room_for` made room."""
        if len(rows):  # a long stream of small batches would otherwise leave a long list behind
            self._parts.append(rows)
            self._used += len(rows)


def spread(n: int, keep: int) -> np.ndarray:
    """Return `keep` of the places 0..n-1, ascending int64: one at random in each equal stretch.

    The jitter keeps the places from falling in step with the channels of a layer. The same
    arguments give the same places.
    """
    if keep >= n:
        return np.arange(n)
    size = 1 << max(12, (keep - 1).bit_length())
    return (_jittered(size)[:keep] * (n / max(keep, 1))).astype(np.int64)


@cache
def _jittered(size: int) -> np.ndarray:
    """Return k + u_k for k below `size`, u_k in [0, 1) always the same.

    A table, because drawing the jitter anew would be a third of the cost of sensing.
    """
    return np.arange(size) + np.random.default_rng(size).random(size)


def masked_extremes(
    x: torch.Tensor, counts: Sequence[int] | None, axis: int
) -> tuple[float, float]:
    """Return the least and greatest element of `x` (B, ...), of each clip its first `counts[b]`
    frames only; NaN when one of them is."""
    # The bare reductions: on clips as short as these, half of numpy's min() is Python.
    least, greatest = np.minimum.reduce, np.maximum.reduce
    values = x.numpy()
    if not counts or min(counts) == x.shape[axis]:
        return float(least(values, axis=None)), float(greatest(values, axis=None))
    clips = [values[b, :n] if axis == 1 else values[b, :, :n] for b, n in enumerate(counts) if n]
    lows = [least(clip, axis=None) for clip in clips]
    highs = [greatest(clip, axis=None) for clip in clips]
    return float(least(lows)), float(greatest(highs))
