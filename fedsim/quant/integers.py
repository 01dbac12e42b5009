"""Linear layers of a delivered model in integers, as a device's runtime computes them.

    y_n = S_x S_n sum_k (a_k - z) q_nk + b_n

a are the codes of the input (scale S_x, zero point z; `quant/activations.py`), q those of the
weight (scales S_n; `quant/weights.py`). The sum is exact in int32. Products of the dequantized
numbers in float32 are the same but for their rounding, and slower on a processor that multiplies
bytes (AVX-512 with VNNI); on others there are only those.
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
from fedsim.quant.layers import Layer
from fedsim.quant.linear import OneDnnLinear
from fedsim.quant.weights import PackedWeight, signed_codes

BITS = 8
"""The widest codes, of weights and activations."""
FEW = 1 << 15
"""Weights of a layer below which the call costs more than the products."""
_DEEP = (2**31 - 1) // (255 * 127)
"""Inputs up to which no sum can leave int32."""


@dataclass(frozen=True)
class IntegerWeight:
    """A weight (N, K) as codes: `codes` int8 in the order that the kernel reads, `scales` float32
    (N,), `zeros` int32 (N,), its zero points, as the kernel asks for them."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return self.codes.numel() + self.scales.nbytes + self.zeros.nbytes


def integers_of(layer: Layer, packed: PackedWeight) -> IntegerWeight | None:
    """Return a layer's weight for products in integers, or None where floats are to serve.

    Floats serve for what is no linear layer, for codes of more than 8 bits, for layers that are
    small or of so many inputs that int32 could overflow, and on processors without VNNI.
    """
    if layer.kind != "linear" or packed.bits > BITS or not bytes_are_fast():
        return None
    return as_integers(packed) if layer.n_weights >= FEW and packed.shape[1] <= _DEEP else None


def as_integers(packed: PackedWeight) -> IntegerWeight:
    """Return a weight (N, K) of at most 8 bits for products in integers."""
    n = packed.shape[0]
    codes = torch.from_numpy(signed_codes(packed, np.int8))
    laid_out = torch.ops.onednn.qlinear_prepack(codes, None)
    scales = torch.from_numpy(packed.scales.copy()).expand(n).contiguous()
    return IntegerWeight(laid_out, scales, torch.zeros(n, dtype=torch.int32))


def computable(module: nn.Module, rng: Range, bits: int) -> bool:
    """Return whether integers can take the place of a module whose input is quantized so.

    They can for a linear layer and nothing more, as a subclass or one that somebody has wrapped
    may be. A weight is laid out for inputs with a zero point: without one (what is quantized is
    nowhere negative) oneDNN would fall back to its slow reference.
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
    largest = PackedWeight((16, 64), 8, np.full(1024, 255, np.uint8), np.ones(1, np.float32))
    try:
        if not (torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()):
            return False
        product = integer_linear(as_integers(largest), None, Range(-1.0, 254.0), 8)
        with torch.inference_mode():
            sums = [product(torch.full((rows, 64), 254.0)) for rows in (1, 64)]
    except Exception:
        return False
    return all(bool((out == 64 * 254 * 127).all()) for out in sums)
