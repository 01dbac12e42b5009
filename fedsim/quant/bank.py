"""The layer bank: each (layer, bit depth) packed once, named by the hash of its content.

Weights never depend on a user's data, so thousands of clients share one bank: a client's model is a
list of names. `BlobStore` is the bank's shelf, a folder of files named by their SHA-256;
`LayerBank` fills it on the server; `WeightCache` reads it in a client's process and keeps
unpacked layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from fedsim.base.cache import LRUCache
from fedsim.base.files import atomic_write
from fedsim.errors import FedsimError
from fedsim.quant.integers import IntegerWeight, integers_of
from fedsim.quant.layers import Layer
from fedsim.quant.packing import packed_bytes
from fedsim.quant.weights import (
    SCALE_BYTES,
    PackedWeight,
    dequantize_weight,
    n_scales,
    quantize_weight,
)

T = TypeVar("T")

CACHE_BYTES = 1 << 30
"""Bytes of unpacked layers that a process keeps."""


@dataclass(frozen=True)
class BlobStore:
    """Immutable byte strings in a folder, each under its SHA-256; safe for many writers at once."""

    folder: Path

    def put(self, data: bytes) -> str:
        """Store `data` and return its name; raise `FedsimError` when that cannot be done."""
        name = hashlib.sha256(data).hexdigest()
        path = self.folder / name
        if path.exists():
            return name
        try:
            with atomic_write(path, durable=False) as file:  # it goes with the run
                file.write(data)
        except OSError as error:
            raise FedsimError(
                f"the bank {self.folder} cannot be written: {error.strerror}; choose a folder that "
                f"is writable and has {len(data):,} bytes free"
            ) from error
        return name

    def __contains__(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def get(self, name: str) -> bytes:
        """Return the bytes called `name`; raise `FedsimError` when absent or damaged."""
        data = self._read(name, Path.read_bytes)
        verify(self, name, data)
        return data

    def fill(self, array: np.ndarray, name: str) -> None:
        """Read the bytes called `name` into `array` (contiguous), without a copy beside it.

        They are not verified: that takes longer than reading them, and `verify` is there for it.
        Raises `FedsimError` when they are absent or not as many as the array has room for.
        """

        def read(path: Path) -> bool:
            with path.open("rb") as file:
                return file.readinto(array.data) == array.nbytes and not file.read(1)

        if not self._read(name, read):
            raise _damaged(self, name)

    def _read(self, name: str, read: Callable[[Path], T]) -> T:
        try:
            return read(self.folder / name)
        except OSError as error:
            raise FedsimError(
                f"blob {name[:12]} cannot be read from {self.folder}: {error.strerror}; the folder "
                f"must be reachable from every worker"
            ) from error


def verify(store: BlobStore, name: str, data: bytes | memoryview) -> None:
    """Raise `FedsimError` when `data`, read from `store`, is not what `name` stands for."""
    if hashlib.sha256(data).hexdigest() != name:
        raise _damaged(store, name)


def _damaged(store: BlobStore, name: str) -> FedsimError:
    return FedsimError(
        f"blob {name[:12]} in {store.folder} is damaged; delete the file and run again"
    )


def to_blob(packed: PackedWeight) -> bytes:
    """Return a packed weight as bytes: scales (float32), then payload."""
    return packed.scales.tobytes() + packed.payload.tobytes()


def from_blob(data: bytes, layer: Layer, bits: int, granularity: str) -> PackedWeight:
    """Return the packed weight in `data`; raise `FedsimError` when its length is not the
    layer's."""
    scales = n_scales(layer.channels, granularity)
    expected = scales * SCALE_BYTES + packed_bytes(layer.n_weights, bits)
    if len(data) != expected:
        raise FedsimError(
            f"layer {layer.name!r} at {bits} bits takes {expected:,} bytes, but {len(data):,} came"
        )
    return PackedWeight(
        layer.shape,
        bits,
        np.frombuffer(data, np.uint8, offset=scales * SCALE_BYTES),
        np.frombuffer(data, "<f4", count=scales),
    )


class LayerBank:
    """Packs layers of one full-precision model on demand, each (layer, bit depth) once."""

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        layers: tuple[Layer, ...],
        granularity: str,
        store: BlobStore,
    ) -> None:
        self.layers = layers
        self.granularity = granularity
        self.store = store
        self._weights = weights
        self._names: dict[tuple[int, int], str] = {}

    def name(self, index: int, bits: int) -> str:
        """Return the content hash of layer `index` at `bits`, packing and storing it the first
        time."""
        key = (index, bits)
        if key not in self._names:
            weight = self._weights[self.layers[index].name]
            packed = quantize_weight(weight, bits, self.granularity)
            self._names[key] = self.store.put(to_blob(packed))
        return self._names[key]

    def manifest(self, plan: tuple[int, ...]) -> tuple[str, ...]:
        """Return the blob names of a plan, one per layer: the client's model."""
        return tuple(self.name(i, bits) for i, bits in enumerate(plan))


@dataclass(frozen=True)
class UnpackedLayer:
    """A layer as a process computes with it, shared with every model that uses it: read only.

    `weight` is float32 of the layer's shape, `integers` the same weight for products in integers,
    or None where floats are to serve.
    """

    weight: torch.Tensor
    integers: IntegerWeight | None

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.weight.nbytes + (self.integers.nbytes if self.integers else 0)


class WeightCache:
    """Unpacked layers of this process, by content hash; the least recently used go first."""

    def __init__(self, store: BlobStore, limit: int = CACHE_BYTES) -> None:
        self.store = store
        self._recent: LRUCache[UnpackedLayer] = LRUCache(limit)

    def layer(self, name: str, layer: Layer, bits: int, granularity: str) -> UnpackedLayer:
        """Return `layer` as the blob called `name` has it, packed at `bits` per `granularity`.

        Raises `FedsimError` for a blob that is missing or damaged, or whose length is not the
        layer's.
        """

        def unpack() -> UnpackedLayer:
            packed = from_blob(self.store.get(name), layer, bits, granularity)
            return UnpackedLayer(dequantize_weight(packed), integers_of(layer, packed))

        return self._recent.get(name, unpack)
