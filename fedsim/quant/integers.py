"""Linear layers of a delivered model in integer arithmetic, as a device's runtime computes them.

    y_n = S_x S_n sum_k (a_k - z) q_nk + b_n

a are the codes of the input (scale S_x, zero point z; `quant/activations.py`), q those of the
weight (scales S_n; `quant/weights.py`). The sum is exact in int32. Multiplying the dequantized
numbers in float32 gives the same up to rounding, but is slower on a processor that multiplies bytes
(AVX-512 with VNNI); other processors use floats only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import nn

from fedsim.quant.activations import Range, activation_codes
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.linear import OneDnnLinear
from fedsim.quant.weights import PackedWeight, signed_codes

BITS = 8
"""The widest codes, of weights and of activations."""
MIN_WEIGHTS = 1 << 15
"""For a layer with fewer weights, calling the kernel costs more than its products."""
_MAX_INPUTS = (2**31 - 1) // (255 * 128)
"""With up to this many inputs, no sum can overflow int32."""


@dataclass(frozen=True)
class IntegerWeight:
    """A weight (N, K) as codes: `codes` int8 in the order in which the kernel reads them, `scales`
    float32 (N,), and `zeros` int32 (N,), the zero points that the kernel expects."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return self.codes.numel() + self.scales.nbytes + self.zeros.nbytes


def integers_of(
    layer: Layer, packed: PackedWeight, *, min_weights: int = MIN_WEIGHTS
) -> IntegerWeight | None:
    """Return a layer's weight for integer arithmetic, or None if floats are to be used.

    Floats are used for layers that are not linear, codes of more than 8 bits, codes with zero
    points or several scales per channel, layers of fewer than `min_weights` weights or of so many
    inputs that int32 could overflow, and on processors without VNNI.
    """
    if layer.kind != "linear" or packed.bits > BITS or not bytes_are_fast():
        return None
    if packed.zeros is not None or packed.scales.shape[1] > 1:
        return None
    if layer.n_weights < min_weights or packed.shape[1] > _MAX_INPUTS:
        return None
    return as_integers(packed)


def as_integers(packed: PackedWeight) -> IntegerWeight:
    """Return a weight (N, K) of at most 8 bits for products in integers."""
    n = packed.shape[0]
    codes = torch.from_numpy(signed_codes(packed, np.int8))
    laid_out = torch.ops.onednn.qlinear_prepack(codes, None)
    scales = torch.from_numpy(packed.scales[:, 0].astype(np.float32)).expand(n).contiguous()
    return IntegerWeight(laid_out, scales, torch.zeros(n, dtype=torch.int32))


def computable(module: nn.Module, rng: Range, bits: int) -> bool:
    """Return whether `module`, its input quantized over `rng`, can be computed in integers.

    It must be a plain linear layer: a subclass, or one whose `forward` was replaced, may compute
    something else. Its input must have a nonzero zero point (the range reaches below zero), for
    which weights are laid out; oneDNN would otherwise fall back to its slow reference kernel.
    """
    plain = type(module) in (nn.Linear, OneDnnLinear) and "forward" not in vars(module)
    return plain and bits <= BITS and rng.zero_point(bits) != 0


def integer_linear(
    weight: IntegerWeight, bias: torch.Tensor | None, rng: Range, bits: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return f: input (..., K) float32 -> output (..., N) float32, the input quantized to `bits`
    (4..8) over `rng`. It knows no gradient."""
    scale, zero = rng.scale(bits), rng.zero_point(bits)

    def forward(input: torch.Tensor) -> torch.Tensor:
        codes = activation_codes(input, rng, bits)
        # torch's own compiler calls it; its public modules keep codes in a type that is deprecated.
        return torch.ops.onednn.qlinear_pointwise(
            codes,
            scale,
            zero,
            weight.codes,
            weight.scales,
            weight.zeros,
            bias,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )

    return forward


@cache
def bytes_are_fast() -> bool:
    """Return whether this processor multiplies bytes quickly, and without saturating its sums.

    Nothing that this asks torch for is public: where a version lacks it or takes other arguments,
    the answer is no.
    """
    # With this variable torch would take one client's scales for another's.
    if os.environ.get("ONEDNN_CACHE_CONTEXT_UNSAFE") == "1":
        return False
    # The largest products there are: without VNNI pairs of them are added up in 16 bits.
    codes, one = np.zeros(1024, np.uint8), np.ones((1, 1), np.float16)
    largest = PackedWeight((16, 64), 8, WeightFormat("per_tensor"), codes, one)
    try:
        if not (torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()):
            return False
        product = integer_linear(as_integers(largest), None, Range(-1.0, 254.0), 8)
        with torch.inference_mode():
            sums = [product(torch.full((rows, 64), 254.0)) for rows in (1, 64)]
    except Exception:
        return False
    return all(bool((out == -64 * 254 * 128).all()) for out in sums)
