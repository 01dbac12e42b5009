"""Sensing on a small copy of the model: its layers at 8 bits, unpacked one at a time.

It takes a quarter of the memory of full precision and reads nothing from storage; its sensitivities
are close to those of the full-precision model, but not equal. Norms, biases and all else that
belongs to no layer stay in full precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.model import Quantizable
from fedsim.quant.on_demand import on_demand
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.weights import PackedWeight, dequantize_weight

BITS = 8
FORMAT = WeightFormat("per_channel")


def pack_proxy(
    weights: Mapping[str, torch.Tensor], layers: Sequence[Layer]
) -> dict[str, PackedWeight]:
    """Return layer name -> its weight packed at `BITS` bits with one scale per channel."""
    return {layer.name: quantize_weight(weights[layer.name], BITS, FORMAT) for layer in layers}


@contextmanager
def proxied(model: Quantizable, packed: Mapping[str, PackedWeight]) -> Iterator[None]:
    """Let `model` compute with the weights in `packed`, unpacked on demand, while open."""
    with on_demand(model, lambda layer: dequantize_weight(packed[layer.name])):
        yield
