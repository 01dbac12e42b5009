"""The model file: one safetensors file per client, exact to the byte, verified by hash.

    8 bytes        length of the header (little endian)
    header         JSON: tensor names, dtypes, shapes, offsets; the manifest under `__metadata__`;
                   padded with spaces to a length that depends on the model alone
    tensors        widest type first: activation ranges (F32), weight scales (F32), leftovers;
                   then the packed codes of each layer (U8)

Because the header's length is fixed, the size of a file is a constant plus the packed bytes of each
layer: a plan's size is known to the byte before anything is packed, and `getsize(file) <= budget`.
The header holds a SHA-256 over its length, itself (with the digest as zeros) and the tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.base.files import atomic_write
from fedsim.errors import FedsimError, ModelFileError
from fedsim.quant.activations import Range
from fedsim.quant.allocation import Sizes
from fedsim.quant.layers import Layer
from fedsim.quant.packing import MAX_BITS, packed_bytes
from fedsim.quant.weights import SCALE_BYTES, PackedWeight, n_scales

FORMAT = "fedsim-model/1"
SUFFIX = ".safetensors"
NAME_ROOM = 256
"""Characters of a model's id or folder, and the language of its user, that the header has room for
whatever the plan."""
LANGUAGE = "language"
"""The one setting that differs between the users of a model: it takes its room from the name's."""
_LANGUAGE_ROOM = 48
_NO_DIGEST = "0" * 64
_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "F16": np.dtype("<f2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


@dataclass(frozen=True)
class Manifest:
    """What a model file says of itself: enough to load it into the architecture it came from.

    `model` is the id or folder of the full-precision model and `fingerprint` the hash of its
    layers' names and shapes; `bits` one bit depth per layer; `settings` what else a loader needs.
    """

    model: str
    fingerprint: str
    granularity: str
    activation_bits: int
    bits: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelFile:
    """The contents of a model file. `ranges` follow the layers; None where a layer has no input."""

    manifest: Manifest
    weights: tuple[PackedWeight, ...]
    ranges: tuple[Range | None, ...]
    leftovers: dict[str, torch.Tensor]


def fingerprint(layers: Sequence[Layer]) -> str:
    """Return a hash of the layers' names and shapes: 16 hexadecimal digits."""
    text = json.dumps([[layer.name, layer.shape] for layer in layers])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def store_leftovers(leftovers: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return leftovers as they are stored: floats in half precision where that is finite."""
    stored = {}
    for name, tensor in leftovers.items():
        half = tensor.half() if tensor.is_floating_point() else tensor
        fits = not tensor.is_floating_point() or bool(torch.isfinite(half).all())
        stored[name] = (half if fits else tensor.float()).contiguous()
    return stored


def load_leftovers(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return stored leftovers as the model computes with them: floats in float32."""
    return {k: v.float() if v.is_floating_point() else v for k, v in stored.items()}


def model_sizes(
    layers: Sequence[Layer],
    leftovers: Mapping[str, torch.Tensor],
    manifest: Manifest,
    depths: Sequence[int],
) -> Sizes:
    """Return the exact bytes of every model file of this model, as a table for the allocators.

    `leftovers` as stored; `manifest` with any bits: its other fields decide the header's length.
    """
    table = np.array([[packed_bytes(a.n_weights, d) for d in depths] for a in layers], np.int64)
    scales = sum(n_scales(a.channels, manifest.granularity) for a in layers) * SCALE_BYTES
    ranges = len(layers) * 2 * 4
    rest = sum(t.nbytes for t in leftovers.values())
    header = 8 + _header_length(layers, leftovers, manifest)
    return Sizes(tuple(depths), table, header + ranges + scales + rest)


def write(path: str | os.PathLike[str], layers: Sequence[Layer], model: ModelFile) -> int:
    """Write a model file atomically and return its bytes.

    Raises `FedsimError` when the folder cannot be written.
    """
    target = Path(path)
    tensors = _tensors(layers, model)
    length = _header_length(layers, model.leftovers, model.manifest)
    blank = _header(tensors, model.manifest, _NO_DIGEST, length)
    digest = hashlib.sha256(struct.pack("<Q", length) + blank)
    for array in tensors.values():
        digest.update(_raw(array))
    header = _header(tensors, model.manifest, digest.hexdigest(), length)
    try:
        with atomic_write(target) as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for array in tensors.values():
                file.write(_raw(array))
            return file.tell()
    except OSError as error:
        raise FedsimError(
            f"the model file {target} cannot be written: {error.strerror}; choose a folder that is "
            f"writable and has {length + sum(a.nbytes for a in tensors.values()):,} bytes free"
        ) from error


def read(path: str | os.PathLike[str], layers: Sequence[Layer]) -> ModelFile:
    """Read and verify a model file of a model with these layers.

    Raises `ModelFileError` when the file is missing, truncated, altered by a single bit, of another
    model or of a later format.
    """
    manifest, tensors = _read_raw(Path(path))
    if manifest.fingerprint != fingerprint(layers):
        raise ModelFileError(
            f"{path} holds a model made from {manifest.model!r}, whose layers differ from those "
            f"of the model given; pass the model it was made from"
        )
    scales, at = tensors["fedsim.scales"], 0
    weights = []
    for index, layer in enumerate(layers):
        count = n_scales(layer.channels, manifest.granularity)
        payload = tensors[f"{layer.name}.codes"]
        weights.append(
            PackedWeight(layer.shape, manifest.bits[index], payload, scales[at : at + count])
        )
        at += count
    ranges = [
        None if np.isnan(low) else Range(float(low), float(high))
        for low, high in tensors["fedsim.ranges"]
    ]
    codes = {f"{layer.name}.codes" for layer in layers}
    rest = {
        name: torch.from_numpy(np.array(array))
        for name, array in tensors.items()
        if name not in codes and not name.startswith("fedsim.")
    }
    return ModelFile(manifest, tuple(weights), tuple(ranges), rest)


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Verify a model file and return its manifest; raises as `read` does."""
    return _read_raw(Path(path))[0]


def _tensors(layers: Sequence[Layer], model: ModelFile) -> dict[str, np.ndarray]:
    """Return every tensor of the file, in the order in which they are written."""
    nothing = (np.nan, np.nan)
    pairs = [nothing if r is None else (r.low, r.high) for r in model.ranges]
    return _in_order(
        np.asarray(pairs, "<f4").reshape(len(layers), 2),
        np.concatenate([w.scales for w in model.weights]).astype("<f4"),
        model.leftovers,
        {
            f"{layer.name}.codes": weight.payload
            for layer, weight in zip(layers, model.weights, strict=True)
        },
    )


def _in_order(
    ranges: np.ndarray,
    scales: np.ndarray,
    leftovers: Mapping[str, torch.Tensor],
    codes: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return all as one: the widest type first, so that each is aligned; codes, whose sizes a plan
    decides, last, so that nothing else moves."""
    fixed = {"fedsim.ranges": ranges, "fedsim.scales": scales}
    fixed |= {name: tensor.numpy() for name, tensor in leftovers.items()}
    wide = sorted(fixed, key=lambda name: -fixed[name].dtype.itemsize)
    return {name: fixed[name] for name in wide} | dict(codes)


def _header(
    tensors: Mapping[str, np.ndarray], manifest: Manifest, digest: str, length: int | None
) -> bytes:
    entries: dict[str, Any] = {}
    entries["__metadata__"] = {
        "format": FORMAT,
        "sha256": digest,
        "manifest": json.dumps(asdict(manifest), sort_keys=True),
    }
    offset = 0
    for name, array in tensors.items():
        entries[name] = {
            "dtype": _dtype_name(array),
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    if length is None:
        return text
    assert len(text) <= length, "the header outgrew its reserve"
    return text.ljust(length)


def _header_length(
    layers: Sequence[Layer], leftovers: Mapping[str, torch.Tensor], manifest: Manifest
) -> int:
    """Return the length that holds the header of any plan: that of all layers at the widest
    depth."""

    def blank(n_bytes: int) -> np.ndarray:  # an array of the right size that takes no memory
        return np.broadcast_to(np.uint8(0), n_bytes)

    # Room for the longest usual path and for any language, so that a size depends neither on where
    # the model lies nor on who uses it.
    settings = {k: v for k, v in manifest.settings.items() if k != LANGUAGE}
    name = manifest.model.ljust(max(NAME_ROOM, len(manifest.model) + _LANGUAGE_ROOM))
    reserve = {"model": name, "bits": (MAX_BITS,) * len(layers), "settings": settings}
    widest = Manifest(**(asdict(manifest) | reserve))
    n = sum(n_scales(a.channels, manifest.granularity) for a in layers)
    tensors = _in_order(
        np.zeros((len(layers), 2), "<f4"),
        np.zeros(n, "<f4"),
        leftovers,
        {f"{a.name}.codes": blank(packed_bytes(a.n_weights, MAX_BITS)) for a in layers},
    )
    length = len(_header(tensors, widest, _NO_DIGEST, None))
    return -(-length // 8) * 8


def _read_raw(path: Path) -> tuple[Manifest, dict[str, np.ndarray]]:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ModelFileError(
            f"the model file {path} cannot be read: {error.strerror}; check the path"
        ) from error
    try:
        (length,) = struct.unpack("<Q", data[:8].tobytes())
        if not 0 < length <= data.size - 8:
            raise ValueError("length of the header")
        header = data[8 : 8 + length].tobytes()
        entries = json.loads(header)
        meta = entries.pop("__metadata__")
        digest, version = meta["sha256"], meta["format"]
        if len(digest) != 64 or header.count(digest.encode()) != 1:
            raise ValueError("digest")
        check = hashlib.sha256(data[:8].tobytes())
        check.update(header.replace(digest.encode(), _NO_DIGEST.encode()))
        check.update(data[8 + length :].data)
        if check.hexdigest() != digest:
            raise ValueError("hash")
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelFileError(
            f"the model file {path} is damaged ({data.size:,} bytes, the hash does not match) or "
            f"no fedsim model file; fetch it again or make it anew"
        ) from error
    if version != FORMAT:
        raise ModelFileError(
            f"{path} has format {version!r}, this fedsim reads {FORMAT!r}; update it"
        )
    fields = json.loads(meta["manifest"])
    manifest = Manifest(**(fields | {"bits": tuple(fields["bits"])}))
    body = data[8 + length :]
    tensors = {}
    for name, entry in entries.items():
        start, end = entry["data_offsets"]
        kind = _DTYPES[entry["dtype"]]
        array = np.frombuffer(body[start:end].tobytes(), dtype=kind)
        tensors[name] = array.reshape(entry["shape"])
    return manifest, tensors


def _dtype_name(array: np.ndarray) -> str:
    for name, dtype in _DTYPES.items():
        if array.dtype == dtype:
            return name
    raise FedsimError(f"a tensor of type {array.dtype} cannot be stored in a model file")


def _raw(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
