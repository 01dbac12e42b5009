"""The header of a model file: its manifest, the index of its tensors, and a hash over everything.

`fedsim.quant.modelfile` describes the whole file. The header is padded to a length that depends on
the model alone, neither on the plan nor on the user, so that file sizes are known in advance.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.errors import FedsimError, ModelFileError
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.packing import MAX_BITS
from fedsim.quant.rows import Rows

FORMAT = "fedsim-model/2"
NAME_ROOM = 256
"""Characters that the header always has room for: the model's id or folder, and the language of its
user."""
LANGUAGE = "language"
"""The only setting that differs between the users of one model. It takes its room from the
name's."""
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
    """What a model file says about itself: enough to load it into the architecture it came from.

    `model` is the id or folder of the full-precision model and `fingerprint` the hash of its
    layers' names and shapes; `bits` has one bit depth per layer; `settings` is whatever else a
    loader needs.
    """

    model: str
    fingerprint: str
    granularity: str
    zero_points: bool
    bits: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def weight_format(self) -> WeightFormat:
        """How codes of weights become numbers."""
        return WeightFormat(self.granularity, self.zero_points)


def in_order(
    ranges: np.ndarray,
    scales: np.ndarray,
    input_bits: np.ndarray,
    leftovers: Mapping[str, torch.Tensor],
    codes: Mapping[str, np.ndarray],
    rows: Rows | None = None,
) -> dict[str, np.ndarray]:
    """Return all tensors of a file in the order in which they are written.

    The widest type comes first, so that every tensor is aligned. Codes come last: only their sizes
    depend on the plan, so nothing else moves.
    """
    fixed = {"fedsim.ranges": ranges, "fedsim.scales": scales, "fedsim.input_bits": input_bits}
    fixed |= {} if rows is None else rows.tensor
    fixed |= {name: tensor.numpy() for name, tensor in leftovers.items()}
    wide = sorted(fixed, key=lambda name: -fixed[name].dtype.itemsize)
    return {name: fixed[name] for name in wide} | dict(codes)


def header_length(
    layers: Sequence[Layer],
    leftovers: Mapping[str, torch.Tensor],
    manifest: Manifest,
    rows: Rows | None = None,
) -> int:
    """Return a length that holds the header of any plan: that of all layers at the widest depth.

    `layers` are as packed; `rows` say which rows of one of them are stored.
    """

    def blank(n_bytes: int) -> np.ndarray:  # an array of the right size that takes no memory
        return np.broadcast_to(np.uint8(0), n_bytes)

    # Room for the longest usual path and for any language, so that a file's size depends neither on
    # where the model lies nor on who uses it.
    settings = {k: v for k, v in manifest.settings.items() if k != LANGUAGE}
    name = manifest.model.ljust(max(NAME_ROOM, len(manifest.model) + _LANGUAGE_ROOM))
    reserve = {"model": name, "bits": (MAX_BITS,) * len(layers), "settings": settings}
    widest = Manifest(**(asdict(manifest) | reserve))
    weight_format = manifest.weight_format
    tensors = in_order(
        np.zeros((len(layers), 2), "<f4"),
        np.zeros(sum(weight_format.n_scales(layer.shape) for layer in layers), "<f2"),
        np.zeros(len(layers), "u1"),
        leftovers,
        {
            f"{layer.name}.codes": blank(weight_format.code_bytes(layer.shape, MAX_BITS))
            for layer in layers
        },
        rows,
    )
    length = len(_text(tensors, widest, _NO_DIGEST))
    return -(-length // 8) * 8


def make_header(tensors: Mapping[str, np.ndarray], manifest: Manifest, length: int) -> bytes:
    """Return the first bytes of a file with these tensors: the length, then the header itself.

    Args:
        tensors: in the order of the file.
        manifest: of the file.
        length: that of the header, from `header_length`.

    Raises:
        FedsimError: for a tensor of a type that no model file holds.
    """
    first = struct.pack("<Q", length)
    digest = hashlib.sha256(first + _padded(_text(tensors, manifest, _NO_DIGEST), length))
    for array in tensors.values():
        digest.update(raw_bytes(array))
    return first + _padded(_text(tensors, manifest, digest.hexdigest()), length)


def parse(data: np.ndarray, path: Path) -> tuple[Manifest, dict[str, np.ndarray]]:
    """Verify the bytes of a file (n,), uint8, and return its manifest and tensors.

    Raises `ModelFileError`, naming `path`, for a file that is damaged, not a model file at all, or
    of another format.
    """
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
            f"is not a fedsim model file; download or make it again"
        ) from error
    if version != FORMAT:
        raise ModelFileError(
            f"the model file {path} has format {version!r}, and this version of fedsim reads "
            f"{FORMAT!r}; use the version that wrote it"
        )
    fields = json.loads(meta["manifest"])
    manifest = Manifest(**(fields | {"bits": tuple(fields["bits"])}))
    body = data[8 + length :]
    tensors = {}
    for name, entry in entries.items():
        start, end = entry["data_offsets"]
        array = np.frombuffer(body[start:end].tobytes(), dtype=_DTYPES[entry["dtype"]])
        tensors[name] = array.reshape(entry["shape"])
    return manifest, tensors


def raw_bytes(array: np.ndarray) -> memoryview:
    """Return the bytes of an array as they are stored."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _padded(text: bytes, length: int) -> bytes:
    assert len(text) <= length, "the header is longer than the room reserved for it"
    return text.ljust(length)


def _text(tensors: Mapping[str, np.ndarray], manifest: Manifest, digest: str) -> bytes:
    entries: dict[str, Any] = {}
    entries["__metadata__"] = {
        "format": FORMAT,
        "sha256": digest,
        "manifest": json.dumps(asdict(manifest), sort_keys=True),
    }
    offset = 0
    for name, array in tensors.items():
        entries[name] = {
            "dtype": _dtype_name(name, array),
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    return json.dumps(entries, separators=(",", ":")).encode()


def _dtype_name(name: str, array: np.ndarray) -> str:
    for short, dtype in _DTYPES.items():
        if array.dtype == dtype:
            return short
    raise FedsimError(
        f"tensor {name!r} of type {array.dtype} cannot be stored in a model file; convert it to "
        f"one of {', '.join(str(dtype) for dtype in _DTYPES.values())}"
    )
