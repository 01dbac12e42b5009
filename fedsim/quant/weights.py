"""A quantized weight as it is stored, and how its codes become numbers again.

    W' = S (q - Z),    q in 0..2^b - 1

S is one float16 for the weights that share a scale (`quant/granularities.py`). Z is 2^(b-1) for
symmetric codes, or a stored integer beside each scale. How a weight is given its codes is the
business of `quant/rounding/`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fedsim.quant.granularities import GRANULARITIES, WeightFormat
from fedsim.quant.packing import pack, packed_bytes, unpack

STEP = 1 << 20
"""Codes unpacked at a time, so that they take little memory beside a large weight. A multiple of 8,
so that every step begins on a byte."""


@dataclass(frozen=True)
class PackedWeight:
    """A quantized weight as it is stored.

    `shape` is that of the weight (N, ...), `payload` its codes, uint8 (packed_bytes(N K, bits),).
    `scales` are float16 (rows, columns), see `WeightFormat.grid`. `zeros` are uint16 of the same
    shape where the format has zero points, else None.
    """

    shape: tuple[int, ...]
    bits: int
    format: WeightFormat
    payload: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of payload, scales and zero points, as stored."""
        zeros = self.format.zero_bytes(self.shape, self.bits)
        return self.payload.nbytes + self.scales.nbytes + zeros


def column_groups(k: int, weight_format: WeightFormat) -> Iterator[slice]:
    """Yield the columns of a matrix (N, k) that share scales, from left to right."""
    size = GRANULARITIES[weight_format.granularity].group or k
    for start in range(0, k, size):
        yield slice(start, min(k, start + size))


def pack_weight(
    shape: tuple[int, ...],
    bits: int,
    weight_format: WeightFormat,
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray | None = None,
) -> PackedWeight:
    """Return a weight whose codes q (any integer type, N K of them, 0..2^bits - 1) are given.

    `scales` (rows, columns) must be representable in float16; `zeros` likewise integers of `bits`
    bits, or None without zero points.
    """
    return PackedWeight(
        shape,
        bits,
        weight_format,
        pack(codes, bits),
        scales.astype("<f2"),
        None if zeros is None else zeros.astype(np.uint16),
    )


def blank_weight(shape: tuple[int, ...], bits: int, weight_format: WeightFormat) -> PackedWeight:
    """Return a weight of which all codes are 0, in the form of any other: to know its bytes."""
    grid = weight_format.grid(shape)
    payload = np.zeros(packed_bytes(math.prod(shape), bits), np.uint8)
    zeros = np.zeros(grid, np.uint16) if weight_format.zero_points else None
    return PackedWeight(shape, bits, weight_format, payload, np.ones(grid, np.float16), zeros)


def dequantize_weight(packed: PackedWeight, *, step: int = STEP) -> torch.Tensor:
    """Return W' = S (q - Z) as float32 of the weight's shape; `step` as in `signed_codes`."""
    weight = signed_codes(packed, np.float32, step=step).reshape(packed.shape[0], -1)
    scales = packed.scales.astype(np.float32)
    for i, columns in enumerate(column_groups(weight.shape[1], packed.format)):
        part = weight[:, columns]
        part *= scales[:, i : i + 1]
    return torch.from_numpy(weight.reshape(packed.shape))


def signed_codes(packed: PackedWeight, dtype: type, *, step: int = STEP) -> np.ndarray:
    """Return q - Z in the weight's shape, as `dtype`, which must be able to hold the difference.

    `step` codes are unpacked at a time, a multiple of 8.
    """
    codes: np.ndarray = np.empty(math.prod(packed.shape), dtype)
    middle = 0 if packed.zeros is not None else 1 << (packed.bits - 1)
    for start in range(0, codes.size, step):
        n, at = min(step, codes.size - start), start * packed.bits // 8
        part = packed.payload[at : at + packed_bytes(n, packed.bits)]
        codes[start : start + n] = unpack(part, packed.bits, n).astype(np.int32) - middle
    if packed.zeros is not None:
        matrix = codes.reshape(packed.shape[0], -1)
        for i, columns in enumerate(column_groups(matrix.shape[1], packed.format)):
            group = matrix[:, columns]
            group -= packed.zeros[:, i : i + 1].astype(dtype)
    return codes.reshape(packed.shape)


def code_bytes(packed: PackedWeight) -> np.ndarray:
    """Return the packed codes, then the packed zero points if there are any, uint8."""
    if packed.zeros is None:
        return packed.payload
    return np.concatenate([packed.payload, pack(packed.zeros, packed.bits)])


def stored_weight(
    codes: np.ndarray,
    scales: np.ndarray,
    shape: tuple[int, ...],
    bits: int,
    weight_format: WeightFormat,
) -> PackedWeight:
    """Return the weight of this shape whose `code_bytes` and scales (in a row, float16) are given.

    Raises `ValueError` for codes of another length.
    """
    grid = weight_format.grid(shape)
    n = packed_bytes(math.prod(shape), bits)
    zeros = None
    if weight_format.zero_points:
        zeros = unpack(codes[n:], bits, grid[0] * grid[1]).reshape(grid)
    return PackedWeight(shape, bits, weight_format, codes[:n], scales.reshape(grid), zeros)


def usable_scales(scales: np.ndarray) -> bool:
    """Return whether stored scales, float16, can be scales: finite, and not 0.

    A block of zeros has the scale 1, and a weight that overflows float16 is refused when packed.
    """
    return bool(np.isfinite(scales).all() and scales.all())
