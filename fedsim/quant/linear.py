"""Linear layers at the processor's full speed: computed by oneDNN where MKL would be slow.

torch computes them in float32 with MKL, which does not use AVX-512 on AMD processors and so runs at
about half their speed. oneDNN, which torch uses for convolutions, does use it.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

FEW = 2**22
"""Multiplications up to which MKL is as fast: calling oneDNN costs 10 microseconds."""


class OneDnnLinear(nn.Linear):
    """A linear layer that oneDNN computes wherever no gradient is asked for."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return input (..., K) times the weight (N, K), transposed, plus the bias: (..., N)."""
        weight = self.weight
        if (
            torch.compiler.is_compiling()  # exporters know the public operator only
            or input.numel() * len(weight) <= FEW
            or torch.is_grad_enabled()
            or not input.dtype == weight.dtype == torch.float32
            or not input.device.type == weight.device.type == "cpu"
        ):
            return F.linear(input, weight, self.bias)
        return _onednn_linear(input, weight, self.bias)


def _onednn_linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    # torch's public way, `input.to_mkldnn()` and back, copies both: a third of what is saved.
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


def use_onednn(model: nn.Module) -> nn.Module:
    """Have oneDNN compute the linear layers of `model`, in place, where MKL is slow.

    It sums the same products in another order: answers differ by the rounding of float32.
    """
    if mkl_is_slow() and onednn_computes():
        for module in model.modules():
            if type(module) is nn.Linear:  # a subclass may compute something else
                module.__class__ = OneDnnLinear
    return model


@cache
def onednn_computes() -> bool:
    """Return whether this torch has the operator, which is not public, and it does as expected."""
    input, weight, bias = torch.ones(1, 3), torch.eye(2, 3), torch.ones(2)
    try:
        with torch.inference_mode():
            output = _onednn_linear(input, weight, bias)
    except Exception:  # there is no such operator, or it takes other arguments
        return False
    return output.tolist() == [[2.0, 2.0]]


@cache
def mkl_is_slow() -> bool:
    """Return whether MKL would leave this processor's AVX-512 unused."""
    try:
        processor = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        processor = platform.processor()
    return (
        "AuthenticAMD" in processor
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
    )
