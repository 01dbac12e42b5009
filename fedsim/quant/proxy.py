"""Sensing on a small copy of the model: layers at 8 bits, unpacked one at a time.

A quarter of the memory of full precision and nothing to read from storage; what it says of the
layers is near to what the full-precision model says, and not equal. Norms, biases and all else that
belongs to no layer stay in full precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from fedsim.quant.layers import Layer
from fedsim.quant.model import Quantizable
from fedsim.quant.on_demand import on_demand
from fedsim.quant.weights import PackedWeight, dequantize_weight, quantize_weight

BITS = 8
GRANULARITY = "per_channel"


def pack_proxy(
    weights: Mapping[str, torch.Tensor], layers: Sequence[Layer]
) -> dict[str, PackedWeight]:
    """Return the weight of each layer packed at `BITS` bits, one scale per channel: by layer
    name."""
    return {a.name: quantize_weight(weights[a.name], BITS, GRANULARITY) for a in layers}


@contextmanager
def proxied(model: Quantizable, packed: Mapping[str, PackedWeight]) -> Iterator[None]:
    """Let `model` answer with the weights in `packed`, unpacked as it calls them, while open."""
    with on_demand(model, lambda layer: dequantize_weight(packed[layer.name])):
        yield
