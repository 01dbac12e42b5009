"""Full precision from storage: a forward pass that holds one layer's weight at a time.

The result is equal, bit for bit, to that of the whole model in memory. The price is reading: each
pass over a batch reads every layer that it calls once, a weight that two modules share once for
each of them, and a seq2seq model that transcribes reads its decoder once per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fedsim.quant.bank import BlobStore, verify
from fedsim.quant.layers import Layer
from fedsim.quant.model import Quantizable
from fedsim.quant.on_demand import on_demand

_ALIGNMENT = 64
"""Bytes: the largest alignment on which a CPU's arithmetic depends."""


@dataclass
class Reading:
    """How much a streamed model has read from storage so far."""

    bytes_read: int = 0


def store_weights(
    weights: Mapping[str, torch.Tensor], layers: Sequence[Layer], store: BlobStore
) -> dict[str, str]:
    """Store the weight of each layer in full precision; return layer name -> name in `store`.

    A file holds a layer's weights as the model has them (little-endian float32, or the type in
    which it was loaded), row by row, named by their SHA-256.
    Many processes may do this at once; only missing files are written. Raises `FedsimError` if the
    folder cannot be written.
    """

    def content(weight: torch.Tensor) -> bytes:
        flat = weight.detach().cpu().contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy().tobytes()  # numpy knows no bfloat16

    return {layer.name: store.put(content(weights[layer.name])) for layer in layers}


@contextmanager
def streamed(model: Quantizable, store: BlobStore, names: Mapping[str, str]) -> Iterator[Reading]:
    """Let `model` read its layers' weights from `store` as it calls them, while open.

    `names` are those that `store_weights` returned. A file is verified when it is first read.
    Raises `FedsimError` during the pass if a file is missing or damaged.
    """
    modules = dict(model.module.named_modules())
    # The last digit of a product depends on the alignment of its weight in memory.
    offsets = {
        layer.name: modules[layer.name].weight.data_ptr() % _ALIGNMENT for layer in model.layers
    }
    kinds = {layer.name: modules[layer.name].weight.dtype for layer in model.layers}
    reading = Reading()
    verified: set[str] = set()

    def read(layer: Layer) -> torch.Tensor:
        name = names[layer.name]
        weight = _empty(layer.n_weights, offsets[layer.name], kinds[layer.name])
        data = weight.view(torch.uint8).numpy()
        store.fill(data, name)
        if name not in verified:
            verify(store, name, data.data)
            verified.add(name)
        reading.bytes_read += data.nbytes
        return weight.reshape(layer.shape)

    with on_demand(model, read):
        yield reading


def _empty(n: int, offset: int, kind: torch.dtype) -> torch.Tensor:
    """Return an uninitialized tensor (n,) that begins `offset` bytes past an aligned address."""
    buffer = torch.empty(n + _ALIGNMENT // kind.itemsize, dtype=kind)
    first = (offset - buffer.data_ptr()) % _ALIGNMENT // kind.itemsize
    return buffer[first : first + n]
