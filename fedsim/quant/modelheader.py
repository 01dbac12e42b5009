"""The header of a model file: its manifest, the index of its tensors, and a hash over everything.

`fedsim.quant.modelfile` describes the whole file. The header is padded to a length that depends on
the model alone, neither on the plan nor on the user, so that file sizes are known in advance. A
signature takes its room from the padding, so that a signed file is as long as an unsigned one.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fedsim.errors import FedsimError
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.packing import MAX_BITS
from fedsim.quant.rows import SUFFIX as ROWS
from fedsim.quant.rows import Rows
from fedsim.quant.signatures import SIGNATURE_CHARS

FORMAT = "fedsim-model/2"
NAME_ROOM = 256
"""Characters that the header always has room for: the model's id or folder, the language of its
user, and a signature."""
LANGUAGE = "language"
"""The only setting that differs between the users of one model. It takes its room from the
name's."""
PLANNED_FOR = "format"
"""The setting that names the format whose files a budget was for, where it is not this one."""
NO_OPTIONS = (LANGUAGE, PLANNED_FOR)
"""Settings that do not change how the model is loaded."""
RANGES, SCALES, INPUT_BITS = "fedsim.ranges", "fedsim.scales", "fedsim.input_bits"
CODES = ".codes"
"""Name of the tensor with a layer's codes: layer name, then this."""
_LANGUAGE_ROOM = 48
NO_DIGEST = "0" * 64
NO_SIGNATURE = "0" * SIGNATURE_CHARS
DTYPES: dict[str, np.dtype] = {
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
    loader needs: names, each with a JSON value that is no object.
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


def fingerprint(layers: Sequence[Layer]) -> str:
    """Return a hash of the layers' names and shapes: 16 hexadecimal digits."""
    text = json.dumps([[layer.name, layer.shape] for layer in layers])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TensorSpec:
    """Type and shape of a stored tensor."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.dtype.itemsize * math.prod(self.shape)


def spec_of(array: np.ndarray) -> TensorSpec:
    """Return type and shape of an array."""
    return TensorSpec(array.dtype, array.shape)


def layout(
    layers: Sequence[Layer],
    leftovers: Mapping[str, TensorSpec],
    manifest: Manifest,
    rows: Rows | None = None,
) -> dict[str, TensorSpec]:
    """Return every tensor of a file, in the order in which they are written.

    The widest type comes first, so that every tensor is aligned. Codes come last: only their sizes
    depend on the plan, so nothing else moves.

    Args:
        layers: as packed, one of them maybe with fewer rows.
        leftovers: as stored.
        manifest: of the file.
        rows: which rows of one layer are stored; None for all.
    """
    how, count = manifest.weight_format, len(layers)
    fixed = {
        RANGES: TensorSpec(DTYPES["F32"], (count, 2)),
        SCALES: TensorSpec(DTYPES["F16"], (sum(how.n_scales(layer.shape) for layer in layers),)),
        INPUT_BITS: TensorSpec(DTYPES["U8"], (count,)),
    }
    if rows is not None:
        fixed[rows.layer + ROWS] = TensorSpec(DTYPES["U8"], (rows.bitmap.size,))
    fixed |= leftovers
    wide = sorted(fixed, key=lambda name: -fixed[name].dtype.itemsize)
    codes = {
        layer.name + CODES: TensorSpec(DTYPES["U8"], (how.code_bytes(layer.shape, bits),))
        for layer, bits in zip(layers, manifest.bits, strict=True)
    }
    return {name: fixed[name] for name in wide} | codes


def header_length(
    layers: Sequence[Layer],
    leftovers: Mapping[str, TensorSpec],
    manifest: Manifest,
    rows: Rows | None = None,
) -> int:
    """Return a length that holds the header of any plan: that of all layers at the widest depth.

    Arguments are as those of `layout`; the manifest may have any bit depths.
    """
    # Room for the longest usual path and for any language, so that a file's size depends neither on
    # where the model lies nor on who uses it.
    settings = {k: v for k, v in manifest.settings.items() if k != LANGUAGE}
    name = manifest.model.ljust(max(NAME_ROOM, len(manifest.model) + _LANGUAGE_ROOM))
    reserve = {"model": name, "bits": (MAX_BITS,) * len(layers), "settings": settings}
    widest = Manifest(**(asdict(manifest) | reserve))
    length = len(header_text(layout(layers, leftovers, widest, rows), widest))
    return -(-length // 8) * 8


def make_header(
    tensors: Mapping[str, np.ndarray],
    manifest: Manifest,
    length: int,
    sign: Callable[[bytes], str] | None = None,
) -> bytes:
    """Return the first bytes of a file with these tensors: the length, then the header itself.

    Args:
        tensors: in the order of the file.
        manifest: of the file.
        length: that of the header, from `header_length`.
        sign: returns the signature of some bytes, for a file that is to be signed.

    Raises:
        FedsimError: for a tensor of a type that no model file holds, or a header without room for a
            signature.
    """
    specs = {name: spec_of(array) for name, array in tensors.items()}
    blank = None if sign is None else NO_SIGNATURE
    over = len(header_text(specs, manifest, NO_DIGEST, blank)) - length
    if sign is not None and over > 0:
        raise FedsimError(
            f"the header of the model file has no room for a signature: the model's id or folder "
            f"{manifest.model!r} is {over} characters too long; load the model from a shorter path"
        )
    digest = digest_of(
        padded_header(specs, manifest, length, NO_DIGEST, blank), map(raw_bytes, tensors.values())
    )
    header = padded_header(specs, manifest, length, digest, blank)
    return header if sign is None else padded_header(specs, manifest, length, digest, sign(header))


def digest_of(blank: bytes, body: Iterable[bytes | memoryview]) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits.

    `blank` is its header with neither digest nor signature, `body` the bytes of its tensors.
    """
    digest = hashlib.sha256(blank)
    for part in body:
        digest.update(part)
    return digest.hexdigest()


def padded_header(
    tensors: Mapping[str, TensorSpec],
    manifest: Manifest,
    length: int,
    digest: str,
    signature: str | None,
) -> bytes:
    """Return the first bytes of a file: the length, then the header of that length."""
    text = header_text(tensors, manifest, digest, signature)
    assert len(text) <= length, "the header is longer than the room reserved for it"
    return struct.pack("<Q", length) + text.ljust(length)


def header_text(
    tensors: Mapping[str, TensorSpec],
    manifest: Manifest,
    digest: str = NO_DIGEST,
    signature: str | None = None,
) -> bytes:
    """Return the header of a file with these tensors, without its padding.

    There is one text for one content: readers compare it with what they read.
    """
    about = {
        "format": FORMAT,
        "sha256": digest,
        "manifest": json.dumps(asdict(manifest), sort_keys=True),
    }
    entries: dict[str, Any] = {
        "__metadata__": about if signature is None else about | {"ed25519": signature}
    }
    offset = 0
    for name, spec in tensors.items():
        entries[name] = {
            "dtype": _dtype_name(name, spec),
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    return json.dumps(entries, separators=(",", ":")).encode()


def raw_bytes(array: np.ndarray) -> memoryview:
    """Return the bytes of an array as they are stored."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _dtype_name(name: str, spec: TensorSpec) -> str:
    for short, dtype in DTYPES.items():
        if spec.dtype == dtype:
            return short
    raise FedsimError(
        f"tensor {name!r} of type {spec.dtype} cannot be stored in a model file; convert it to "
        f"one of {', '.join(str(dtype) for dtype in DTYPES.values())}"
    )
