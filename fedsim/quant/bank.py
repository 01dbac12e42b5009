"""The layer bank: each (layer, bit depth) packed once, named by the hash of its content.

Weights never depend on a user's data, so thousands of clients share one bank: a client's model is a
list of names. `BlobStore` is a folder of files named by their SHA-256; `LayerBank` fills it on the
server; `WeightCache` reads it in a client's process and keeps unpacked layers.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch

from fedsim.base.cache import LRUCache
from fedsim.base.files import atomic_write
from fedsim.errors import FedsimError
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.integers import IntegerWeight, integers_of
from fedsim.quant.layers import Layer
from fedsim.quant.moments import SecondMoments
from fedsim.quant.packing import check_bits
from fedsim.quant.rounding.plan import round_plan
from fedsim.quant.rows import Rows
from fedsim.quant.weights import (
    PackedWeight,
    code_bytes,
    dequantize_weight,
    stored_weight,
    usable_scales,
)

T = TypeVar("T")
BlobNames: TypeAlias = dict[tuple[int, int, str, str], str]
"""(layer, bit depth, rounding, key of rows) -> name of its blob."""

CPU = torch.device("cpu")
CACHE_BYTES = 1 << 30
"""Bytes of unpacked layers that a process keeps at most."""
MAX_BLOB_BYTES = 4 << 30
"""Bytes of one blob at most, where nothing else is known of it."""
_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class BlobStore:
    """Immutable byte strings in a folder, each under its SHA-256; safe for many writers at once."""

    folder: Path

    def put(self, data: bytes) -> str:
        """Store `data` and return its name; raises `FedsimError` if the folder cannot be
        written."""
        name = hashlib.sha256(data).hexdigest()
        path = self.folder / name
        if path.exists():
            return name
        try:
            with atomic_write(path, durable=False) as file:  # the bank lasts as long as the run
                file.write(data)
        except OSError as error:
            raise FedsimError(
                f"the bank {self.folder} cannot be written: {error.strerror}; choose a folder that "
                f"is writable and has {len(data):,} bytes free"
            ) from error
        return name

    def __contains__(self, name: str) -> bool:
        return bool(_NAME.fullmatch(name)) and (self.folder / name).is_file()

    def get(self, name: str, max_bytes: int = MAX_BLOB_BYTES) -> bytes:
        """Return the bytes called `name`, of which at most `max_bytes` are read.

        Raises `FedsimError` if they are missing or damaged, or there are more.
        """

        def read(path: Path) -> bytes | None:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                return file.read(max_bytes) if size <= max_bytes else None

        data = self._read(name, read)
        if data is None:
            raise FedsimError(
                f"blob {name[:12]} in {self.folder} is damaged or of another layer: it has more "
                f"than {max_bytes:,} bytes; use the model and the weight format that it was packed "
                f"with, or delete the file and run again"
            )
        verify(self, name, data)
        return data

    def fill(self, array: np.ndarray, name: str) -> None:
        """Read the bytes called `name` straight into `array` (contiguous).

        The bytes are not verified, which takes longer than reading them; see `verify`. Raises
        `FedsimError` if the file is missing or not as long as the array.
        """

        def read(path: Path) -> bool:
            with path.open("rb") as file:
                return file.readinto(array.data) == array.nbytes and not file.read(1)

        if not self._read(name, read):
            raise _damaged(self, name)

    def _read(self, name: str, read: Callable[[Path], T]) -> T:
        if not _NAME.fullmatch(name):  # a name comes from a message: it may be the path of a file
            raise FedsimError(
                f"{name!r:.80} is not the name of a blob, a SHA-256 in hexadecimal digits; run the "
                f"same version of fedsim on both sides"
            )
        try:
            return read(self.folder / name)
        except OSError as error:
            raise FedsimError(
                f"blob {name[:12]} cannot be read from {self.folder}: {error.strerror}; make the "
                f"folder reachable from every worker"
            ) from error


def verify(store: BlobStore, name: str, data: bytes | memoryview) -> None:
    """Raise `FedsimError` unless `data`, read from `store`, is what `name` stands for."""
    if hashlib.sha256(data).hexdigest() != name:
        raise _damaged(store, name)


def _damaged(store: BlobStore, name: str) -> FedsimError:
    return FedsimError(
        f"blob {name[:12]} in {store.folder} is damaged; delete the file and run again"
    )


def to_blob(packed: PackedWeight) -> bytes:
    """Return a packed weight as bytes: scales (float16), then codes and zero points."""
    return packed.scales.tobytes() + code_bytes(packed).tobytes()


def from_blob(data: bytes, layer: Layer, bits: int, weight_format: WeightFormat) -> PackedWeight:
    """Return the packed weight in `data`.

    Raises `FedsimError` for another length than the layer's, a bit depth that cannot be packed, and
    scales that are not finite, or 0.
    """
    expected = blob_bytes(layer, bits, weight_format)
    if len(data) != expected:
        raise FedsimError(
            f"layer {layer.name!r} at {bits} bits takes {expected:,} bytes, but its blob has "
            f"{len(data):,}; use the model and the weight format that it was packed with"
        )
    n = weight_format.scale_bytes(layer.shape)
    scales = np.frombuffer(data[:n], "<f2")
    if not usable_scales(scales):
        raise FedsimError(
            f"layer {layer.name!r} at {bits} bits has scales in its blob that are not finite, or "
            f"0; use the model and the weight format that it was packed with"
        )
    codes = np.frombuffer(data, np.uint8, offset=n)
    return stored_weight(codes, scales, layer.shape, bits, weight_format)


def blob_bytes(layer: Layer, bits: int, weight_format: WeightFormat) -> int:
    """Return the bytes of a packed layer; `FedsimError` for a depth that cannot be packed."""
    check_bits(bits)
    return weight_format.scale_bytes(layer.shape) + weight_format.code_bytes(layer.shape, bits)


class LayerBank:
    """Packs the layers of one full-precision model on demand.

    Each (layer, bit depth, rounding) is packed once. `moments` are the public second moments, by
    layer name, for roundings that read them. `names` are those of what was packed of this model
    before, to which what is packed is added.
    """

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        layers: tuple[Layer, ...],
        weight_format: WeightFormat,
        store: BlobStore,
        moments: Mapping[str, SecondMoments] | None = None,
        names: BlobNames | None = None,
    ) -> None:
        self.layers = layers
        self.weight_format = weight_format
        self.store = store
        self._weights = weights
        self._moments = moments or {}
        self._names: BlobNames = {} if names is None else names

    def manifest(
        self, plan: tuple[int, ...], rounding: str, rows: Rows | None = None
    ) -> tuple[str, ...]:
        """Return the blob names of a plan, one per layer: they stand for the client's model.

        Layers that are not packed yet are packed together. `rows` say which rows of one layer are
        packed; None for all.
        """
        return self._pack(list(enumerate(plan)), rounding, rows)

    def name(self, layer: int, bits: int, rounding: str, rows: Rows | None = None) -> str:
        """Return the blob name of one layer at a bit depth."""
        return self._pack([(layer, bits)], rounding, rows)[0]

    def _pack(
        self, plan: Sequence[tuple[int, int]], rounding: str, rows: Rows | None
    ) -> tuple[str, ...]:
        keys = [
            (i, bits, rounding, rows.key if rows and rows.layer == self.layers[i].name else "")
            for i, bits in plan
        ]
        missing = [key for key in keys if key not in self._names]
        layers = [self.layers[i] for i, *_ in missing]
        depths = [bits for _, bits, *_ in missing]
        packed = round_plan(
            self._weights, layers, depths, rounding, self.weight_format, self._moments, rows
        )
        for key, weight in zip(missing, packed, strict=True):
            self._names[key] = self.store.put(to_blob(weight))
        return tuple(self._names[key] for key in keys)


@dataclass(frozen=True)
class UnpackedLayer:
    """A layer as a process computes with it; shared by all models that use it, so read only.

    `weight` is float32 of the layer's shape; `integers` is the same weight for integer arithmetic,
    or None where the layer is computed in floats.
    """

    weight: torch.Tensor
    integers: IntegerWeight | None

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.weight.nbytes + (self.integers.nbytes if self.integers else 0)


def unpacked(packed: PackedWeight, layer: Layer, device: torch.device = CPU) -> UnpackedLayer:
    """Return a packed layer as a process computes with it on `device`; in integers on the processor
    alone."""
    integers = integers_of(layer, packed) if device == CPU else None
    with torch.inference_mode(False):  # a parameter cannot hold an inference-mode tensor
        return UnpackedLayer(dequantize_weight(packed).to(device), integers)


class WeightCache:
    """The unpacked layers of this process, by content hash; drops the least recently used."""

    def __init__(
        self, store: BlobStore, limit: int = CACHE_BYTES, device: torch.device = CPU
    ) -> None:
        self.store, self.device = store, device
        self._recent: LRUCache[UnpackedLayer] = LRUCache(limit)

    def layer(
        self, name: str, layer: Layer, bits: int, weight_format: WeightFormat
    ) -> UnpackedLayer:
        """Return `layer`, unpacked from the blob called `name`, of `bits` bits.

        Raises `FedsimError` for a blob that is missing or damaged, or whose contents are not the
        layer's.
        """

        def unpack() -> UnpackedLayer:
            data = self.store.get(name, blob_bytes(layer, bits, weight_format))
            return unpacked(from_blob(data, layer, bits, weight_format), layer, self.device)

        # The same bytes are another weight where they are read as another layer's.
        return self._recent.get((name, layer.kind, layer.shape, bits, weight_format), unpack)
