"""Damaged and unusual recordings, and tables of them, read as a corpus of kind `folder`."""

from __future__ import annotations

import io
import os
import random
import shutil
import struct
from functools import cache
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.fuzz import Finding
from benchmarks.fuzz.reading import damaged, watched
from fedsim.base.text import has_control
from fedsim.errors import AudioError, FedsimError
from fedsim.scenario.clients import ClientSettings
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.audio import MAX_LEVEL, MAX_SECONDS, SAMPLE_RATE, clip_seconds, read_clip
from fedsim.speech.corpus import open_clients
from fedsim.speech.eligible import require_clips
from fedsim.speech.wordless import wordless_line

_FORMATS = (
    *(("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("WAV", "ULAW")),
    *(
        ("FLAC", "PCM_16"),
        ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"),
        ("AIFF", "PCM_16"),
        ("W64", "PCM_16"),
    ),
)
_RATES = (1, 3_999, 4_000, 8_000, 16_000, 16_000, 16_000, 44_100, 192_000, 200_000)
_FIELDS = (
    *("", " ", "ann", "bob", "e\u0301", "\u00e9", "x" * 300, "\x00", "\x1b[2J", "-", "own", "..."),
    *("hello", "(hm)", "\u2028", "a,b", '"', "'", "\ud800", "\u202e", "a\nb", "\r"),
)
_NAMES = (
    *("0.wav", "./0.wav", "a/../0.wav", "1.flac", "2.wav", "missing.wav", "pipe", "folder", "loop"),
    *(
        "../0.wav",
        "/dev/zero",
        "/dev/null",
        "x" * 300,
        "a/" * 3000,
        "0.wav\x00",
        "copy.wav",
        "//0.wav",
    ),
)


def try_one(rng: random.Random, home: Path) -> Finding | None:
    """Read one damaged clip, or a folder with a damaged table."""
    if rng.random() < 0.7:
        content = _clip(rng)
        return watched(content, lambda: _read(rng, content, home))
    folder = _folder(home)
    table = _table(rng)
    (folder / "metadata.csv").write_bytes(table)
    return watched(table, lambda: _open(rng, folder))


def _clip(rng: random.Random) -> bytes:
    kind, subtype = rng.choice(_FORMATS)
    rate, channels = rng.choice(_RATES), rng.choice((1, 1, 1, 2, 8))
    content = _written(kind, subtype, rate, channels, rng.choice((0, 1, 1_599, 1_600, 16_000)))
    if kind == "WAV" and rng.random() < 0.3:
        content = _with_header(rng, content)
    return damaged(rng, content) if rng.random() < 0.7 else content


@cache
def _written(kind: str, subtype: str, rate: int, channels: int, frames: int) -> bytes:
    level = 1e300 if subtype == "DOUBLE" and frames == 1_600 else 0.1
    samples = np.random.default_rng(frames).normal(0, level, (frames, channels))
    file = io.BytesIO()
    try:
        soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    except (soundfile.LibsndfileError, ValueError):
        return b"RIFF"  # a rate that the format does not have
    return file.getvalue()


def _with_header(rng: random.Random, content: bytes) -> bytes:
    """Return a WAV file with an absurd number in its header."""
    data = bytearray(content)
    number = rng.choice((0, 1, 3, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 192_001))
    for at, size in rng.sample(
        ((4, 4), (16, 4), (20, 2), (22, 2), (24, 4), (32, 2), (34, 2), (40, 4)), 2
    ):
        if len(data) >= at + size:
            data[at : at + size] = struct.pack("<I", number)[:size]
    return bytes(data)


def _read(rng: random.Random, content: bytes, home: Path) -> str | None:
    path = home / "clip"
    path.write_bytes(content)
    source = path if rng.random() < 0.5 else content
    try:
        length = clip_seconds(source)
        if not 0 <= length < float("inf"):
            return f"a length of {length} s"
    except AudioError:
        pass
    clip = read_clip(source, "clip", convert=rng.random() < 0.7)
    if clip.dtype != np.float32 or clip.ndim != 1 or not np.isfinite(clip).all():
        return f"a clip of {clip.dtype} {clip.shape} that is not finite float32"
    if not SAMPLE_RATE // 10 <= len(clip) <= MAX_SECONDS * SAMPLE_RATE + 1:
        return f"a clip of {len(clip)} samples"
    return "far too loud" if float(np.abs(clip).max()) > MAX_LEVEL else None


def _folder(home: Path) -> Path:
    folder = home / "corpus"
    if not folder.exists():
        (folder / "folder").mkdir(parents=True)
        for i, kind in enumerate(("wav", "flac", "wav", "wav")):
            data = _written(kind.upper(), "PCM_16", 16_000, 1, 16_000 + i)
            (folder / f"{i}.{kind}").write_bytes(data)
        shutil.copy(folder / "0.wav", folder / "copy.wav")
        os.mkfifo(folder / "pipe")
        (folder / "loop").symlink_to("loop")
    return folder


def _table(rng: random.Random) -> bytes:
    columns = ["file_name", "text", "speaker", "gender", "language"]
    if rng.random() < 0.2:
        columns[rng.randrange(5)] = rng.choice((*_FIELDS, "file_name"))
    rows = [",".join(columns)]
    for _ in range(rng.choice((0, 1, 4, 4, 4, 4, 2_000))):
        name = rng.choice(_NAMES) if rng.random() < 0.9 else rng.choice(_FIELDS)
        fields = [rng.choice(("hello", "ann", "ann", "bob", "ann", *_FIELDS)) for _ in range(4)]
        rows.append(",".join([name, *fields]))
    content = "\n".join(rows).encode("utf-8", "surrogatepass")
    return damaged(rng, content) if rng.random() < 0.3 else content


def _open(rng: random.Random, folder: Path) -> str | None:
    corpus = CorpusSettings(
        path=str(folder),
        group_by=rng.choice(("speaker", "gender", "language")),
        max_seconds=rng.choice((None, 2.0)),
        tuning_clips=rng.choice((1, 16)),
        test_clips=rng.choice((1, 40)),
        convert=True,
    )
    clients = open_clients(corpus, ClientSettings(), rng.randrange(3))
    wordless_line(clients)
    for key, client in clients.items():
        if has_control(key) or len(key) > 200:
            return f"a client called {key!r}"
        try:
            require_clips(client, corpus)
        except FedsimError:
            continue
        names = [os.path.normpath(u.key) for u in (*client.tuning, *client.test)]
        if {"0.wav", "copy.wav"} <= set(names) or len(names) != len(set(names)):
            return f"one recording twice among {names}"
    return None
