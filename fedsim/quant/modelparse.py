"""Reading a model file as if it were hostile: bounds before bytes, one legal header per content.

Functions raise `Flaw`, whose text names what is wrong; `fedsim.quant.modelfile` makes a
`ModelFileError` of it. The order is: size and length of the header; the header, every field of
which has one legal type; that its index covers the file to the byte, without gaps; the signature,
if one is demanded; that the index is the one that the writer would make for the model given
(`fedsim.quant.modelchecks`). Only then are tensors read, so that no file takes more memory than the
model's own files do.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import unicodedata
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from fedsim.quant.granularities import GRANULARITIES
from fedsim.quant.modelheader import (
    DTYPES,
    FORMAT,
    NO_DIGEST,
    NO_SIGNATURE,
    Manifest,
    TensorSpec,
    header_text,
    padded_header,
)
from fedsim.quant.packing import MAX_BITS, MIN_BITS
from fedsim.quant.signatures import SIGNATURE_BYTES

MAX_HEADER_BYTES = 4 << 20
"""Of any header: whisper-large has one of about 200,000 bytes."""
MAX_FILE_BYTES = 8 << 30
"""Of any file: what is read in a row, a part at a time, where the model is not known yet."""
_PART = 1 << 20
_VERSION = re.compile(r"fedsim-model/[0-9]{1,9}")
_HEX = re.compile(r"[0-9a-f]*")
_MAX_NAME = 4096


class Flaw(Exception):
    """What is wrong with the contents of a model file."""


class OtherVersion(Exception):
    """The format of a file that another version of fedsim wrote; the text is its name."""


@dataclass(frozen=True)
class Header:
    """A header that is well formed, and covers its file to the byte."""

    manifest: Manifest
    tensors: dict[str, TensorSpec]
    """In the order of the file."""
    length: int
    """Bytes of the header, padding included."""
    digest: str
    """SHA-256 of the file, 64 hexadecimal digits; not verified yet."""
    signature: str | None
    """In base64, of the header with its digest; not verified yet."""

    @property
    def body_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.nbytes for spec in self.tensors.values())

    def start_of(self, name: str) -> int:
        """Return where in the file a tensor begins."""
        start = 8 + self.length
        for other, spec in self.tensors.items():
            if other == name:
                return start
            start += spec.nbytes
        raise KeyError(name)

    def without(self, *, digest: bool) -> bytes:
        """Return the first bytes of the file without the signature, and without the `digest`."""
        return padded_header(
            self.tensors,
            self.manifest,
            self.length,
            NO_DIGEST if digest else self.digest,
            None if self.signature is None else NO_SIGNATURE,
        )


def read_header(file: BinaryIO) -> Header:
    """Return the header of a file opened at its start; at most `MAX_HEADER_BYTES` are read.

    Raises `OtherVersion` for a file of another version of the format.
    """
    size = os.fstat(file.fileno()).st_size
    first = file.read(8)
    if len(first) < 8:
        raise Flaw(f"{size:,} bytes are too few")
    if first == b"version ":  # of a length, these bytes would make 2^61
        raise Flaw("it is a pointer of Git LFS: run git lfs pull in its folder")
    (length,) = struct.unpack("<Q", first)
    if not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
        raise Flaw(f"its header would have {length:,} of its {size:,} bytes")
    if size > MAX_FILE_BYTES:
        raise Flaw(f"it has {size:,} bytes, more than any model file")
    text = file.read(length)
    about, entries = _parts(text)
    manifest = _manifest(_json(_text_of(about, "manifest")))
    digest, signature = _text_of(about, "sha256"), about.get("ed25519")
    require(len(digest) == 64 and bool(_HEX.fullmatch(digest)), "its hash is malformed")
    if signature is not None:
        signature = _text_of(about, "ed25519")
        require(_raw(signature) is not None, "its signature is malformed")
    tensors = {name: _spec(name, entry) for name, entry in entries.items()}
    header = Header(manifest, tensors, length, digest, signature)
    taken = 8 + length + header.body_bytes
    require(taken == size, f"its header stands for {taken:,} bytes, and it has {size:,}")
    same = header_text(tensors, manifest, digest, signature).ljust(length) == text
    require(same, "its header is not written as fedsim writes it")
    return header


def check_signature(header: Header, check: Callable[[bytes, bytes], bool]) -> bool:
    """Return whether `check`, from `fedsim.quant.signatures.verifier`, knows the signature."""
    signature = None if header.signature is None else _raw(header.signature)
    return signature is not None and check(header.without(digest=False), signature)


def check_hash(file: BinaryIO, header: Header) -> None:
    """Read a file to its end, a part at a time, and compare its hash with the header's."""
    file.seek(8 + header.length)
    digest, left = hashlib.sha256(header.without(digest=True)), header.body_bytes
    while left:
        part = file.read(min(left, _PART))
        require(bool(part), "it ends too early")
        digest.update(part)
        left -= len(part)
    require(digest.hexdigest() == header.digest, "the hash does not match")


def read_tensors(file: BinaryIO, header: Header) -> dict[str, np.ndarray]:
    """Return the tensors of a file, views of one array, once its hash is verified."""
    file.seek(8 + header.length)
    body = np.empty(header.body_bytes, np.uint8)
    at = 0
    while at < body.size:
        count = file.readinto(body[at:].data)  # type: ignore[attr-defined]
        require(bool(count), "it ends too early")
        at += count
    digest = hashlib.sha256(header.without(digest=True))
    digest.update(body.data)
    require(digest.hexdigest() == header.digest, "the hash does not match")
    body.flags.writeable = False
    tensors, start = {}, 0
    for name, spec in header.tensors.items():
        tensors[name] = body[start : start + spec.nbytes].view(spec.dtype).reshape(spec.shape)
        start += spec.nbytes
    return tensors


def _parts(text: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metadata and the index of tensors in the text of a header."""
    entries = _json(text)
    require(isinstance(entries, dict), "its header is not a JSON object")
    about = entries.pop("__metadata__", None)
    require(isinstance(about, dict), "its header has no metadata")
    version = _text_of(about, "format")
    if version != FORMAT and _VERSION.fullmatch(version):
        raise OtherVersion(version)
    require(version == FORMAT, "its header names another format")
    return about, entries


def _manifest(found: Any) -> Manifest:
    names = {"model", "fingerprint", "granularity", "zero_points", "bits", "settings"}
    require(isinstance(found, dict) and found.keys() == names, "its manifest has other fields")
    model = _text_of(found, "model")
    plain = not any(unicodedata.category(c) in ("Cc", "Cs") for c in model)
    require(0 < len(model) <= _MAX_NAME and plain, "its manifest names no model")
    require(_text_of(found, "granularity") in GRANULARITIES, "its granularity is unknown")
    require(isinstance(found["zero_points"], bool), "zero_points is neither true nor false")
    bits = found["bits"]
    require(
        isinstance(bits, list) and all(_whole(b) and MIN_BITS <= b <= MAX_BITS for b in bits),
        f"its bit depths are not all from {MIN_BITS} to {MAX_BITS}",
    )
    settings = found["settings"]
    require(
        isinstance(settings, dict)
        and all(
            _plain(v) or (isinstance(v, list) and all(map(_plain, v))) for v in settings.values()
        ),
        "its settings are not all plain values or lists of them",
    )
    _text_of(found, "fingerprint")
    return Manifest(**(found | {"bits": tuple(bits)}))


def _spec(name: str, entry: Any) -> TensorSpec:
    fits = isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}
    require(
        fits and entry["dtype"] in list(DTYPES), f"its index of tensors is damaged: {name!r:.80}"
    )
    shape = entry["shape"]
    fits = isinstance(shape, list) and len(shape) <= 8
    fits = fits and all(_whole(n) and 0 <= n <= MAX_FILE_BYTES for n in shape)
    require(fits, f"its index of tensors is damaged: {name!r:.80}")
    return TensorSpec(DTYPES[entry["dtype"]], tuple(shape))


def _raw(signature: str) -> bytes | None:
    """Return the 64 bytes of a signature; None for a text that is not the base64 of such bytes.

    Of several texts that stand for the same bytes (four bits of the last letter are not read), one
    is written.
    """
    try:
        raw = b64decode(signature, validate=True)
    except ValueError:
        return None
    same = len(raw) == SIGNATURE_BYTES and b64encode(raw).decode() == signature
    return raw if same else None


def _json(text: bytes | str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise Flaw("its header is not a JSON object") from None


def _text_of(found: dict[str, Any], key: str) -> str:
    value = found.get(key)
    require(isinstance(value, str), f"its field {key!r} is missing or not a text")
    assert isinstance(value, str)
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def require(holds: bool, what: str) -> None:
    """Raise `Flaw` with this text unless something holds."""
    if not holds:
        raise Flaw(what)
