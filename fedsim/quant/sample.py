"""Evenly spread samples of bounded size from streams of unknown length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from fedsim.quant.accelerated import extremes, on_processor, wide, wider


class Sample:
    """A bounded sample of a stream: one row of every `stride`, which doubles when the sample is
    full.

    Rows are arrays on the processor, and tensors on a GPU, where they stay.

    Rows may be scalars (`row_shape` ()) or arrays. Two samples that are given the same counts keep
    the same places of their streams, so that, for example, inputs and gradients stay aligned.
    """

    def __init__(self, capacity: int, row_shape: tuple[int, ...] = ()) -> None:
        self._capacity = capacity
        self._row_shape = row_shape
        self._parts: list[Any] = []
        self._used = 0
        self._stride = 1
        self._offered = 0
        self._rng: np.random.Generator | None = None  # most samples never overflow

    @property
    def values(self) -> Any:
        """The rows kept so far, float32 (n, *row_shape); an array if there are none."""
        if len(self._parts) > 1 and isinstance(self._parts[0], torch.Tensor):
            self._parts = [torch.cat(self._parts)]
        elif len(self._parts) != 1:
            nothing = np.empty((0, *self._row_shape), np.float32)
            self._parts = [np.concatenate([nothing, *self._parts])]
        return self._parts[0]

    def room_for(self, n: int) -> int:
        """Return how many of the next `n` rows to keep, after thinning the sample if necessary."""
        while self._used + self._wanted(n) > self._capacity:
            # Keep one of each two neighbours, at random: a fixed choice would fall into step with
            # the order of the channels.
            half = self._used // 2
            if self._rng is None:
                self._rng = np.random.default_rng(0)
            pick = 2 * np.arange(half) + self._rng.integers(0, 2, half)
            if self._parts:
                rows = self.values
                on_gpu = isinstance(rows, torch.Tensor)
                self._parts = [rows[torch.from_numpy(pick).to(rows.device) if on_gpu else pick]]
            self._used = half
            self._stride *= 2
        keep = self._wanted(n)
        self._offered += n
        return keep

    def _wanted(self, n: int) -> int:
        """Return how many of the next `n` rows lie a whole number of strides from the start of the
        stream: often none, if batches are smaller than the stride."""
        return -(-(self._offered + n) // self._stride) + -self._offered // self._stride

    def add(self, rows: Any) -> None:
        """Add rows, float32 (m, *row_shape), for which `room_for` made room; they are not
        copied."""
        if len(rows):  # many small batches would otherwise leave a long list of empty parts
            self._parts.append(rows)
            self._used += len(rows)


def spread(n: int, keep: int) -> np.ndarray:
    """Return `keep` of the places 0..n-1, int64, ascending: a random one in each equal stretch.

    The jitter keeps the places from falling into step with the channels of a layer. The same
    arguments give the same places.
    """
    if keep >= n:
        return np.arange(n)
    size = 1 << max(12, (keep - 1).bit_length())
    return (_jittered(size)[:keep] * (n / max(keep, 1))).astype(np.int64)


@cache
def _jittered(size: int) -> np.ndarray:
    """Return k + u_k for each k below `size`, where u_k in [0, 1) is always the same.

    Cached, because drawing the jitter again each time would be a third of the cost of sensing.
    """
    return np.arange(size) + np.random.default_rng(size).random(size)


def masked_extremes(
    x: torch.Tensor, counts: Sequence[int] | None, axis: int
) -> tuple[float, float]:
    """Return the smallest and the largest element of `x` (B, ...), or NaN if one of them is NaN.

    Only the first `counts[b]` frames of clip b, along `axis`, count; None counts them all.
    """
    # The bare reductions: on short clips, half the time of numpy's min() is Python.
    lowest, highest = np.minimum.reduce, np.maximum.reduce
    values = (x if x.dtype == torch.float32 else x.float()).numpy()  # numpy knows no bfloat16
    if not counts or min(counts) == x.shape[axis]:
        return float(lowest(values, axis=None)), float(highest(values, axis=None))
    clips = [values[b, :n] if axis == 1 else values[b, :, :n] for b, n in enumerate(counts) if n]
    lows = [lowest(clip, axis=None) for clip in clips]
    highs = [highest(clip, axis=None) for clip in clips]
    return float(lowest(lows)), float(highest(highs))


class Extremes:
    """The smallest and the largest element of a stream of tensors, NaN if one of them is NaN.

    On a GPU they are tensors, so that nobody waits for them: `fetched` returns the numbers of many
    streams at once.
    """

    def __init__(self) -> None:
        self.low: Any = np.inf
        self.high: Any = -np.inf

    @property
    def ends(self) -> tuple[Any, Any]:
        """The smallest and the largest element: numbers, or tensors without dimensions."""
        return self.low, self.high

    def add(self, x: torch.Tensor, counts: Sequence[int] | None, axis: int) -> None:
        """Add `x` (B, ...); arguments as of `masked_extremes`."""
        if on_processor(x):
            low, high = masked_extremes(x, counts, axis)
            self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
            return
        ends = extremes(x, counts, axis)
        if isinstance(self.low, torch.Tensor):
            ends = wider(torch.stack(self.ends), ends)
        self.low, self.high = ends


def fetched(values: Sequence[Any]) -> list[float]:
    """Return numbers, and tensors without dimensions on one GPU, as numbers: in one transfer."""
    there = [i for i, value in enumerate(values) if isinstance(value, torch.Tensor)]
    found = dict(enumerate(values))
    if there:
        kind = wide(values[there[0]].device)
        numbers = torch.stack([values[i].to(kind) for i in there]).tolist()
        found |= zip(there, numbers, strict=True)
    return [float(found[i]) for i in range(len(values))]
