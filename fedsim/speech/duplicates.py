"""One recording must not be tuned on and tested: clips of a client with the same content."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.base.files import require_regular
from fedsim.errors import AudioError, FedsimError
from fedsim.speech.audio import clip_header
from fedsim.speech.clips import ClientData, Utterance, read_utterance, utterance_audio

_BLOCK = 4_096
_SAME = 0.9
"""Correlation above which clips of two encodings are one recording; that of two is near 0."""
_HEADER_BYTES = 128
"""A file of no more holds a header without samples."""


def require_distinct(client: ClientData) -> None:
    """Check that no two clips of a client have the same content.

    Sizes are compared first, then a block from the middle, and only files that agree in both are
    read as a whole. Clips of another encoding but the same length are decoded and compared. Clips
    that are parts of recordings are compared with those of the same begin and end.

    Raises `FedsimError` with the names of both.
    """
    recorded = [u for u in (*client.tuning, *client.test) if isinstance(u.source, Path | tuple)]
    alike: dict[Any, list[Utterance]] = defaultdict(list)
    _require_apart(client.key, [u for u in recorded if u.is_segment])
    for utterance in recorded:
        if (size := _size(utterance)) is not None:
            alike[size, utterance.begin, utterance.end].append(utterance)
    for look in (_middle, _content):
        groups = [group for group in alike.values() if len(group) > 1]
        alike = defaultdict(list)
        for i, group in enumerate(groups):
            for utterance in group:
                alike[i, look(utterance)].append(utterance)
    for group in alike.values():
        if len(group) > 1:
            raise _duplicates(client.key, *group[:2])
    _require_other_samples(client.key, recorded)


def _require_other_samples(key: str, recorded: Sequence[Utterance]) -> None:
    """Check that no clip is another one in another encoding; clips of one encoding are not
    decoded."""
    known: dict[Any, dict[Any, list[Utterance]]] = defaultdict(lambda: defaultdict(list))
    for utterance in recorded:
        with suppress(AudioError):  # that it cannot be read shows later
            heard = clip_header(utterance_audio(utterance)[0])
            span = heard.frames, heard.rate, heard.channels, utterance.begin, utterance.end
            known[span][heard.encoding].append(utterance)
    for by_encoding in known.values():
        if len(by_encoding) > 1:
            _require_uncorrelated(key, list(by_encoding.values()))


def _require_uncorrelated(key: str, encodings: Sequence[Sequence[Utterance]]) -> None:
    """Check that clips of one length, by encoding, are different recordings."""
    heard: list[tuple[int, Utterance, np.ndarray]] = []
    for i, group in enumerate(encodings):
        for utterance in group:
            try:
                samples = read_utterance(utterance, convert=True).astype(np.float64)
            except AudioError:
                continue
            samples -= samples.mean()
            power = float(samples @ samples)
            if power == 0:
                continue  # silence is like no other recording
            samples /= math.sqrt(power)
            for j, other, known in heard:
                if i != j and len(known) == len(samples) and samples @ known > _SAME:
                    raise _duplicates(key, other, utterance)
            heard.append((i, utterance, samples))


def _require_apart(key: str, segments: Sequence[Utterance]) -> None:
    """Check that no two clips of one recording are the same part of it, for more than half of the
    shorter one: a table may give them other ends."""
    by_file: dict[Any, list[Utterance]] = defaultdict(list)
    for segment in segments:
        if isinstance(segment.source, Path):
            by_file[segment.source].append(segment)
    for group in by_file.values():
        group.sort(key=lambda u: u.begin)
        for first, second in pairwise(group):
            lengths = [u.end - u.begin for u in (first, second) if u.end is not None]
            ends = [u.end for u in (first, second) if u.end is not None]
            if lengths and min(ends) - second.begin > min(lengths) / 2:
                raise _duplicates(key, first, second)


def _duplicates(key: str, first: Utterance, second: Utterance) -> FedsimError:
    return FedsimError(
        f"client {key!r}: clips {first.key} and {second.key} have the same content, and one"
        f" recording must not be tuned on and tested; remove one, or set"
        f" corpus.duplicates: keep"
    )


def _size(utterance: Utterance) -> int | None:
    """Return the bytes of a recorded clip; None for one that is too short to be a clip or cannot
    be read, which shows later."""
    source, _ = utterance_audio(utterance)
    try:
        size = len(source) if isinstance(source, bytes) else require_regular(source)
    except (OSError, FedsimError):
        return None
    return size if size > _HEADER_BYTES else None


def _middle(utterance: Utterance) -> bytes:
    """Return a block from the middle of a clip, away from its header and from leading silence."""
    source, _ = utterance_audio(utterance)
    if isinstance(source, bytes):
        return source[len(source) // 2 :][:_BLOCK]
    try:
        with source.open("rb") as file:
            file.seek(source.stat().st_size // 2)
            return file.read(_BLOCK)
    except OSError:
        return utterance.key.encode()  # like no other: that it cannot be read shows later


def _content(utterance: Utterance) -> bytes:
    """Return the SHA-256 of a clip's content."""
    source, _ = utterance_audio(utterance)
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
    except OSError:
        return utterance.key.encode()
    return hashlib.sha256(content).digest()
