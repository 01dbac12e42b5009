"""Scales and zero points of weights that share them, from the weights alone.

A *block* is the weights that share a scale: a row of a matrix (M, g). Its codes are q in
0..2^b - 1 and its numbers S (q - Z). Everything is numpy on one thread, row by row, so that the
result depends neither on the number of threads nor on what else is rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from fedsim.errors import FedsimError

_MAX_SCALE = float(np.finfo(np.float16).max)
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the range that a search tries; the fewer bits, the more of the range is cut."""
REFINEMENTS = 2
"""How often a search of least squares refits the scale to the codes."""
_AT_ONCE = 1 << 17
"""Weights that a search goes over at a time: they stay in the cache from one pass to the next."""


@dataclass(frozen=True)
class BlockScales:
    """Scales S, float64 (M,), each representable in float16, and zero points Z, float64 (M,)."""

    scale: np.ndarray
    zero: np.ndarray

    def codes(self, blocks: np.ndarray, low: float, high: float) -> np.ndarray:
        """Return the nearest codes of `blocks` (M, g) within `low`..`high`, as floats."""
        q = self.steps(blocks, low, high)
        q += self.zero[:, None].astype(blocks.dtype)
        return q

    def steps(self, blocks: np.ndarray, low: float, high: float) -> np.ndarray:
        """Return the same codes less Z: the numbers, in units of S."""
        zero = self.zero[:, None].astype(blocks.dtype)
        q = np.divide(blocks, self.scale[:, None].astype(blocks.dtype))
        np.rint(q, out=q)
        np.maximum(q, blocks.dtype.type(low) - zero, out=q)
        return np.minimum(q, blocks.dtype.type(high) - zero, out=q)


def require_finite(weight: np.ndarray) -> None:
    """Raise `FedsimError` if a weight is NaN or infinite."""
    if not np.isfinite(weight).all():
        raise FedsimError(
            "a weight is NaN or infinite: the model's checkpoint is damaged; download or export it "
            "again"
        )


def half_up(values: np.ndarray) -> np.ndarray:
    """Return positive `values` rounded up to float16, as float64; 1 for a value of 0.

    Raises `FedsimError` for values that float16 cannot hold.
    """
    if values.size and values.max() > _MAX_SCALE:
        raise FedsimError(
            f"a weight needs a scale of {values.max():.3g}, and a model file stores scales up to "
            f"{_MAX_SCALE:.0f}; add the layer to model.keep, or allow more bits"
        )
    half = values.astype(np.float16)
    with np.errstate(over="ignore"):  # of the largest number, which stays as it is
        half = np.where(half < values, np.nextafter(half, np.float16(np.inf)), half)
    return np.where(values > 0, half, np.float16(1)).astype(np.float64)


def largest_magnitude(blocks: np.ndarray, bits: int) -> BlockScales:
    """Return S = max|W| / (2^(b-1) - 1) and Z = 2^(b-1), as in the paper."""
    top = np.abs(blocks).max(axis=1).astype(np.float64)
    scale = half_up(top / ((1 << (bits - 1)) - 1))
    return BlockScales(scale, np.full(len(blocks), float(1 << (bits - 1))))


def whole_range(blocks: np.ndarray, bits: int) -> BlockScales:
    """Return S = (max W - min W) / (2^b - 1), and Z the code of 0."""
    return _between(*_ends(blocks), bits, 1.0)


def signed_full(blocks: np.ndarray, bits: int) -> BlockScales:
    """Return the scale with which the largest weight has the code 0: S (0 - Z).

    Symmetric codes reach from -2^(b-1) to 2^(b-1) - 1: one more on the negative side. S is negative
    where the largest magnitude is a positive weight, so that this code is used.
    """
    return _up_to(_largest(blocks), bits, 1.0)


def _ends(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest weight of each block, and 0 within them, (M,)."""
    low, high = np.minimum(blocks.min(axis=1), 0.0), np.maximum(blocks.max(axis=1), 0.0)
    return low.astype(np.float64), high.astype(np.float64)


def _between(low: np.ndarray, high: np.ndarray, bits: int, share: float) -> BlockScales:
    low, high = low * share, high * share
    top = (1 << bits) - 1
    scale = half_up((high - low) / top)
    return BlockScales(scale, np.clip(np.rint(-low / scale), 0, top))


def _largest(blocks: np.ndarray) -> np.ndarray:
    """Return the weight of largest magnitude of each block, with its sign, (M,)."""
    return np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)[:, 0]


def _up_to(largest: np.ndarray, bits: int, share: float) -> BlockScales:
    middle = 1 << (bits - 1)
    scale = half_up(np.abs(largest).astype(np.float64) * share / middle)
    return BlockScales(np.where(largest > 0, -scale, scale), np.full(len(largest), float(middle)))


def shares(bits: int) -> tuple[float, ...]:
    """Return the shares of the range that a search of least squares tries."""
    return _SHARES if bits <= 4 else _SHARES[:4] if bits <= 6 else _SHARES[:1]


def least_squares(blocks: np.ndarray, bits: int, *, zero_points: bool) -> BlockScales:
    """Return scales of least squared error sum (W - W')^2 within each block.

    A search over shares of the range, then S = <W, q - Z> / <q - Z, q - Z>, the best scale of the
    codes found, as long as it lowers the error.
    """
    rows = max(1, _AT_ONCE // blocks.shape[1])
    parts = [
        _least_squares(blocks[start : start + rows], bits, zero_points)
        for start in range(0, len(blocks), rows)
    ]
    return BlockScales(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("scale", "zero")))


def _least_squares(blocks: np.ndarray, bits: int, zero_points: bool) -> BlockScales:
    start = partial(_between, *_ends(blocks)) if zero_points else partial(_up_to, _largest(blocks))
    top = float((1 << bits) - 1)
    best, least = start(bits, 1.0), np.full(len(blocks), np.inf)
    for share in (*shares(bits), *(None,) * REFINEMENTS):
        refit = share is None
        scales = _refit(blocks, best, top) if refit else start(bits, share)
        error = _squared_error(blocks, scales, top)
        better = error < least
        least = np.where(better, error, least)
        best = BlockScales(
            np.where(better, scales.scale, best.scale), np.where(better, scales.zero, best.zero)
        )
    return best


def _refit(blocks: np.ndarray, scales: BlockScales, top: float) -> BlockScales:
    q = scales.steps(blocks, 0.0, top)
    size = np.einsum("mg,mg->m", q, q)
    fitted = np.einsum("mg,mg->m", q, blocks) / np.where(size > 0, size, 1.0)
    half = fitted.astype(np.float16).astype(np.float64)
    # A scale of 0 or of infinity stands for nothing: the old one stays.
    usable = (half != 0) & np.isfinite(half)
    return BlockScales(np.where(usable, half, scales.scale), scales.zero)


def _squared_error(blocks: np.ndarray, scales: BlockScales, top: float) -> np.ndarray:
    back = scales.steps(blocks, 0.0, top)
    back *= scales.scale[:, None].astype(blocks.dtype)
    back -= blocks
    return np.einsum("mg,mg->m", back, back)
