"""Full precision from storage: a forward pass that holds one layer's weight at a time.

What a device computes so is equal, bit for bit, to what the whole model in memory gives. The price
is reading: each pass over a batch reads every layer that it calls once, a weight that two modules
share once for each of them, and a seq2seq model that transcribes reads its decoder once a token.
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
"""Bytes: the widest boundary that arithmetic on a CPU looks at."""


@dataclass
class Reading:
    """What a model that is streamed has read from storage so far."""

    bytes_read: int = 0


def store_weights(
    weights: Mapping[str, torch.Tensor], layers: Sequence[Layer], store: BlobStore
) -> dict[str, str]:
    """Store the weight of each layer in full precision; return layer name -> name in `store`.

    A file is the layer's weights as little-endian float32, row by row, under their SHA-256: many
    processes may do this at once, and only what is not there yet is written. Raises `FedsimError`
    when the folder cannot be written.
    """
    return {
        layer.name: store.put(weights[layer.name].detach().numpy().astype("<f4").tobytes())
        for layer in layers
    }


@contextmanager
def streamed(model: Quantizable, store: BlobStore, names: Mapping[str, str]) -> Iterator[Reading]:
    """Let `model` read its layers' weights from `store` as it calls them, while open.

    `names` as `store_weights` returned them. A file is verified when it is first read. Raises
    `FedsimError` in the pass when a file is missing or damaged.
    """
    modules = dict(model.module.named_modules())
    # The last digit of a product depends on where in memory its weight begins.
    offsets = {a.name: modules[a.name].weight.data_ptr() % _ALIGNMENT for a in model.layers}
    reading = Reading()
    sound: set[str] = set()

    def read(layer: Layer) -> torch.Tensor:
        name = names[layer.name]
        weight = _empty(layer.n_weights, offsets[layer.name])
        data = weight.numpy()
        store.fill(data, name)
        if name not in sound:
            verify(store, name, data.data)
            sound.add(name)
        reading.bytes_read += data.nbytes
        return weight.reshape(layer.shape)

    with on_demand(model, read):
        yield reading


def _empty(n: int, offset: int) -> torch.Tensor:
    """Return room for `n` numbers (float32) that begins `offset` bytes behind a boundary."""
    room = torch.empty(n + _ALIGNMENT // 4)
    first = (offset - room.data_ptr()) % _ALIGNMENT // 4
    return room[first : first + n]
