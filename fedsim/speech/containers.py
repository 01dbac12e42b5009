"""Audio files that are shorter than their header says: cut off while they were copied or written.

libsndfile reads what is there as if it were all. WAV (RIFF, RF64, RIFX), AIFF, AU, W64 and CAF say
how many bytes of samples follow: the file is measured. FLAC, and MP3 with a Xing header, say how
many samples there are: they are counted when they are decoded. An Ogg file ends with any of its
pages, and an MP3 without that header with any frame: nothing shows that more was meant to follow.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fedsim.errors import AudioError

_TOLERANCE = 64
"""Bytes that may lack: some programs count a part of the header, or a byte of padding."""
_UNKNOWN = 0x7FFF_0000
"""A 32-bit size from here on stands for one that was not known, as in files written to a pipe."""
_MAX_CHUNKS = 10_000
_SHORT = 0.05
"""Seconds that a decoder may drop at the end of an MP3."""


def require_whole(source: Path | bytes, name: str) -> None:
    """Check that a file holds the samples that its header promises; any other container passes.

    Args:
        source: the file, or its content.
        name: what an error calls it.

    Raises `AudioError` with both numbers.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        found = promised_bytes(file)
    if found is None or found[0] <= found[1] + _TOLERANCE:
        return
    promised, there = found
    raise AudioError(
        f"audio file {name} is cut off: its header promises {promised:,} bytes of samples and the"
        f" file has {max(there, 0):,}; copy it again, or leave it out"
    )


def require_decoded(source: Path | bytes, name: str, frames: int, promised: int, rate: int) -> None:
    """Check that as many frames were decoded as the header promises, FLAC's and an MP3's.

    Raises `AudioError` with both numbers.
    """
    if frames >= promised - _SHORT * rate:
        return
    begin = source[:65_536] if isinstance(source, bytes) else _beginning(source)
    counted = begin.startswith(b"fLaC") or b"Xing" in begin or b"Info" in begin
    if counted:
        raise AudioError(
            f"audio file {name} is cut off: its header promises {promised:,} samples and the file"
            f" has {frames:,}; copy it again, or leave it out"
        )


def promised_bytes(file: BinaryIO) -> tuple[int, int] | None:
    """Return the bytes of samples that a header promises, and those that are there.

    None for a container that does not say, and for a header that cannot be followed.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(40)
    try:
        return _promised(file, head, size)
    except (struct.error, OverflowError, OSError):
        return None


def _promised(file: BinaryIO, head: bytes, size: int) -> tuple[int, int] | None:
    kind = head[:4]
    if kind in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        order = ">" if kind == b"RIFX" else "<"
        long = None
        for chunk, length, at in _chunks(file, 12, order + "4sI", 2):
            if chunk == b"ds64":
                file.seek(at + 8)
                (long,) = struct.unpack("<Q", file.read(8))
            if chunk == b"data":
                length = long if long is not None and length == 0xFFFF_FFFF else length
                known = length < _UNKNOWN or long is not None
                return (length, size - at) if known else None
    elif kind == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        for chunk, length, at in _chunks(file, 12, ">4sI", 2):
            if chunk == b"SSND":
                return (length - 8, size - at - 8) if length < _UNKNOWN else None
    elif kind == b".snd":
        begin, length = struct.unpack(">II", head[4:12])
        return (length, size - begin) if length < _UNKNOWN else None
    elif kind == b"riff" and head[24:28] == b"wave":
        for chunk, length, at in _chunks(file, 40, "<16sQ", 8, inclusive=24):
            if chunk[:4] == b"data":
                return length, size - at
    elif kind == b"caff":
        for chunk, length, at in _chunks(file, 8, ">4sq", 1):
            if chunk == b"data":
                return (length - 4, size - at - 4) if length >= 0 else None
    return None


def _chunks(
    file: BinaryIO, at: int, form: str, align: int, inclusive: int = 0
) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, length and place of the content of each chunk; `inclusive` is the length of
    a chunk's own header where its length counts it."""
    header = struct.calcsize(form)
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        found = file.read(header)
        if len(found) < header:
            return
        name, length = struct.unpack(form, found)
        length -= inclusive
        yield name, length, at + header
        if length < 0:
            return
        at += header + -(-length // align) * align


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(65_536)
