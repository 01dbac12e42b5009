"""The activation quantizer: asymmetric, over a range that is fixed or that of each vector.

    S = (x_max - x_min) / (2^b - 1),    q = clamp(round(x / S) - Z, 0, 2^b - 1),    x' = S (q + Z)

with Z = round(x_min / S). A range always contains zero, so that zero (padding, a silent frame, the
output of a rectifier) is represented exactly. A *static* range is one per layer, from calibration,
as in the paper. A *dynamic* one is that of each input vector (a token, a frame), found while the
model runs; nothing is calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

MIN_ACTIVATION_BITS, MAX_ACTIVATION_BITS = 4, 16
_SMALLEST = 3e-39
"""A scale below this has no inverse in float32."""


@dataclass(frozen=True)
class Range:
    """The range of a layer's input that the codes cover: `low` <= 0 <= `high`."""

    low: float
    high: float

    def scale(self, bits: int) -> float:
        """Return the scale S at `bits` bits; 1 for an empty range, which holds zero alone."""
        width = self.high - self.low
        return width / ((1 << bits) - 1) if width > 0 else 1.0

    def zero_point(self, bits: int) -> int:
        """Return the code of zero: -Z in the formula above."""
        top = (1 << bits) - 1
        return min(top, max(0, round(-self.low / self.scale(bits))))


@dataclass(frozen=True)
class InputFormat:
    """How one layer's input is quantized: to `bits` over `range`, or each vector over its own range
    if `range` is None. With 0 bits it stays in floats."""

    bits: int = 0
    range: Range | None = None


FLOAT = InputFormat()
"""An input that is not quantized."""


def quantize_input(x: torch.Tensor, how: InputFormat) -> torch.Tensor:
    """Return a layer's input `x` (for a dynamic range (..., K)) as it is computed with.

    It is quantized in float32, and returned in its own type.
    """
    if how.bits == 0:
        return x
    if how.range is None:
        return quantize_vectors(x.float(), how.bits).to(x.dtype)
    return quantize_activation(x.float(), how.range, how.bits).to(x.dtype)


def quantize_vectors(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Return x' for `x` (..., K) float32: each vector quantized to `bits` over its own range."""
    top = (1 << bits) - 1
    low, high = (end.float() for end in torch.aminmax(x, dim=-1, keepdim=True))
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    width = (high - low).clamp(min=_SMALLEST * top)
    zero = (-low * top / width).round_()
    steps = (x * (top / width)).round_()
    steps = torch.minimum(torch.maximum(steps, -zero), top - zero)
    return steps.mul_(width / top)


def make_range(low: float, high: float) -> Range:
    """Return the range from `low` to `high`, widened to contain zero, at float32 precision.

    Model files store float32, so a range is the same before and after saving.
    """
    return Range(float(np.float32(min(low, 0.0))), float(np.float32(max(high, 0.0))))


def quantize_activation(x: torch.Tensor, rng: Range, bits: int) -> torch.Tensor:
    """Return x' for `x` (any shape, float32): quantized to `bits` (4..16) and dequantized.

    Equal to `torch.fake_quantize_per_tensor_affine`, whose kernel is not vectorized and takes about
    twenty times as long on a CPU.
    """
    return _steps(x, rng, bits).mul_(rng.scale(bits))


def activation_codes(x: torch.Tensor, rng: Range, bits: int) -> torch.Tensor:
    """Return the codes q of `x` (any shape, float32) at `bits` (4..8) bits, uint8."""
    codes = _steps(x, rng, bits).add_(rng.zero_point(bits)).numpy()
    with np.errstate(invalid="ignore"):  # NaN has no code: any will do
        return torch.from_numpy(codes.astype(np.uint8))  # three times as fast as torch's cast


def _steps(x: torch.Tensor, rng: Range, bits: int) -> torch.Tensor:
    """Return q + Z for `x`, float32, in a new tensor."""
    zero = rng.zero_point(bits)
    steps = (x * _inverse(rng.scale(bits))).round_()  # half to even
    return steps.clamp_(-zero, (1 << bits) - 1 - zero)


def _inverse(scale: float) -> float:
    """Return 1 / scale at float32 precision; finite, however small the scale."""
    if scale < _SMALLEST:
        return float(np.finfo(np.float32).max)
    return float(np.float32(1) / np.float32(scale))
