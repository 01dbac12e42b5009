"""The weight quantizer: symmetric, one scale per tensor (as in the paper) or per output channel.

    S = max|W| / (2^(b-1) - 1),    q = clamp(round(W / S), -(2^(b-1) - 1), 2^(b-1) - 1),    W' = S q

The zero point is 0, so a weight of zero stays zero. Codes are stored with an offset of 2^(b-1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedsim.errors import FedsimError
from fedsim.quant.granularities import GRANULARITIES
from fedsim.quant.packing import pack, packed_bytes, unpack

SCALE_BYTES = 4
"""Bytes of one stored scale (float32)."""

STEP = 1 << 20
"""Codes unpacked at a time, so that they take little memory beside a large weight. A multiple of 8,
so that every step begins on a byte."""


@dataclass(frozen=True)
class PackedWeight:
    """A quantized weight as it is stored: payload (uint8) and scales, float32 (1,) or
    (channels,)."""

    shape: tuple[int, ...]
    bits: int
    payload: np.ndarray
    scales: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of payload and scales."""
        return self.payload.nbytes + self.scales.nbytes


def quantize_weight(weight: torch.Tensor, bits: int, granularity: str) -> PackedWeight:
    """Quantize `weight` (N, ...) to `bits` (2..16) and pack it.

    Raises `FedsimError` if the weight contains a NaN or an infinity.
    """
    rounded, scales = _codes(weight, bits, granularity)
    codes = rounded.to(torch.int32) + (1 << (bits - 1))
    return PackedWeight(
        tuple(weight.shape), bits, pack(codes.numpy(), bits), scales.numpy().astype("<f4")
    )


def round_weight(weight: torch.Tensor, bits: int, granularity: str) -> torch.Tensor:
    """Return W' = S q for `weight`, float32: the same as packing and unpacking it.

    Raises `FedsimError` if the weight contains a NaN or an infinity.
    """
    codes, scales = _codes(weight, bits, granularity)
    return codes.mul_(scales.reshape(-1, *[1] * (weight.ndim - 1)))


def _codes(weight: torch.Tensor, bits: int, granularity: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q (float32, a new tensor of the weight's shape) and S (float32, (N,) or (1,))."""
    weight = weight.detach().float()
    top = GRANULARITIES[granularity].largest(weight)
    if not bool(torch.isfinite(top).all()):
        raise FedsimError(
            "a weight is NaN or infinite: the model's checkpoint is damaged; download or export it "
            "again"
        )
    limit = (1 << (bits - 1)) - 1
    # A channel whose scale would be 0 (all zeros, or nearly so) gets scale 1: all its codes are 0.
    scales = torch.where(top / limit > 0, top / limit, torch.ones_like(top))
    per_row = scales.reshape(-1, *[1] * (weight.ndim - 1))
    return torch.div(weight, per_row).round_().clamp_(-limit, limit), scales


def dequantize_weight(packed: PackedWeight, *, step: int = STEP) -> torch.Tensor:
    """Return W' = S q as float32 of the weight's shape; `step` as in `signed_codes`."""
    weight = torch.from_numpy(signed_codes(packed, np.float32, step=step))
    weight *= torch.from_numpy(packed.scales.copy()).reshape(-1, *[1] * (len(packed.shape) - 1))
    return weight


def signed_codes(packed: PackedWeight, dtype: type, *, step: int = STEP) -> np.ndarray:
    """Return q in the weight's shape, as `dtype`, which must be able to hold the codes.

    `step` codes are unpacked at a time, a multiple of 8.
    """
    codes: np.ndarray = np.empty(int(np.prod(packed.shape)), dtype)
    for start in range(0, codes.size, step):
        n, at = min(step, codes.size - start), start * packed.bits // 8
        part = packed.payload[at : at + packed_bytes(n, packed.bits)]
        codes[start : start + n] = unpack(part, packed.bits, n).astype(np.int32) - (
            1 << (packed.bits - 1)
        )
    return codes.reshape(packed.shape)
