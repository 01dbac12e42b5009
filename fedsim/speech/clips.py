"""Clips of clients: their metadata, the split into tuning and test clips, and reading the audio.

Tuning clips are unlabelled: the `Utterance` of one has no text.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedsim.base.files import require_regular
from fedsim.errors import AudioError, FedsimError
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.audio import clip_format, read_clip

GROUPS = ("speaker", "gender", "language")
_BLOCK = 4_096
FIELDS = ("audio", "text", *GROUPS)


class Renderable(Protocol):
    """A clip that is computed on demand, such as `fedsim.speech.voices.Take`."""

    def render(self) -> np.ndarray:
        """Return the clip, float32 (samples,) at 16 kHz; raises `AudioError`."""


@dataclass(frozen=True)
class Utterance:
    """One clip and its metadata.

    `source` is a path, a `datasets` table with a row number, or a clip to be synthesized. Of a
    recording it may be a part, from `begin` to `end`.
    """

    key: str
    source: Path | tuple[Any, int] | Renderable
    text: str | None = None
    speaker: str | None = None
    gender: str | None = None
    language: str | None = None
    begin: float = 0.0
    """Seconds into the recording at which the clip begins."""
    end: float | None = None
    """Seconds at which it ends; None for the end of the recording."""

    @property
    def is_segment(self) -> bool:
        """Whether the clip is a part of its recording."""
        return self.begin > 0 or self.end is not None


@dataclass(frozen=True)
class ClientData:
    """One client's clips: `tuning` (unlabelled) and `test` (held out); no clip is in both."""

    key: str
    tuning: tuple[Utterance, ...]
    test: tuple[Utterance, ...]
    language: str | None = None
    wordless: tuple[str, ...] = ()
    """Keys of clips that would be test clips, had their reference a word; they are not scored."""


@dataclass(frozen=True)
class Found:
    """What a reader found in a recorded corpus."""

    kind: str
    """Of the corpus, `auto` resolved."""
    utterances: Sequence[Utterance]
    """All that may belong to a client."""
    notes: tuple[str, ...] = ()
    """What is to be said once about how the corpus was read."""
    seconds: Mapping[str, float] | None = None
    """Length of each clip by its key, where the corpus' tables say it."""
    beside: Path | None = None
    """Folder in which every recording should be named by the corpus' tables."""


class Clients(Mapping[str, ClientData]):
    """Clients by key, each made on demand: thousands take no more memory than one."""

    def __init__(
        self,
        keys: Sequence[str],
        make: Callable[[str], ClientData],
        clips: tuple[int, int] | None = None,
    ) -> None:
        self._keys = dict.fromkeys(keys)
        self._make = make
        self.clips = clips
        """Numbers of tuning and test clips where all clients have as many, each with a text: then
        no client needs to be made to know whether it can take part. None if they may differ."""
        self.found: Found | None = None
        """What was found on disk; None for synthetic speakers."""

    def __getitem__(self, key: str) -> ClientData:
        if key not in self._keys:
            raise KeyError(key)
        return self._make(key)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def restrict(self, keys: Sequence[str]) -> Clients:
        """Return only the clients with these keys, in this order."""
        fewer = Clients(keys, self._make, self.clips)
        fewer.found = self.found
        return fewer

    def changed(self, change: Callable[[ClientData], ClientData]) -> Clients:
        """Return the same clients, each as `change` returns it."""
        same = Clients(list(self), lambda key: change(self._make(key)), self.clips)
        same.found = self.found
        return same


def require_clips(client: ClientData, corpus: CorpusSettings) -> None:
    """Check that a client can take part; the content of its clips may be read.

    Raises `FedsimError` as `check_metadata` and `require_distinct` do.
    """
    check_metadata(client, corpus)
    if corpus.duplicates == "refuse":
        require_distinct(client)


def check_metadata(client: ClientData, corpus: CorpusSettings) -> None:
    """Check that a client can take part, by the metadata of its clips.

    Raises `FedsimError` if it has no tuning clips, no test clips, or a test clip without text.
    """
    total = len(client.tuning) + len(client.test)
    if client.wordless and not client.test:
        raise FedsimError(
            f"client {client.key!r}: no reference of its {len(client.wordless)} test clips has a"
            f" word once normalized, the first is {client.wordless[0]}; correct the texts or leave"
            f" the client out"
        )
    if not client.tuning or not client.test:
        which = "tuning" if not client.tuning else "test"
        raise FedsimError(
            f"client {client.key!r} has no {which} clips: the corpus holds {total} of its clips "
            f"and corpus.test_clips takes {corpus.test_clips} first; lower it or leave the client "
            f"out"
        )
    without_text = next((u for u in client.test if not u.text), None)
    if without_text is not None:
        raise FedsimError(
            f"client {client.key!r}: test clip {without_text.key} has no text to compare with; "
            f"fill in its text or remove the clip"
        )


_HEADER_BYTES = 128
"""A file of no more holds a header without samples."""


def require_distinct(client: ClientData) -> None:
    """Check that no two clips of a client have the same content.

    Sizes are compared first, then a block from the middle, and only clips that agree in both are
    read as a whole. The same samples in another container or encoding are not noticed. Clips that
    are parts of recordings are compared with those of the same begin and end.

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
    assert isinstance(utterance.source, Path | tuple)
    source, _ = _audio(utterance.source, utterance.key)
    try:
        size = len(source) if isinstance(source, bytes) else require_regular(source)
    except (OSError, FedsimError):
        return None
    return size if size > _HEADER_BYTES else None


def _middle(utterance: Utterance) -> bytes:
    """Return a block from the middle of a clip, where there is no header and less silence."""
    assert isinstance(utterance.source, Path | tuple)
    source, _ = _audio(utterance.source, utterance.key)
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
    assert isinstance(utterance.source, Path | tuple)
    source, _ = _audio(utterance.source, utterance.key)
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
    except OSError:
        return utterance.key.encode()
    return hashlib.sha256(content).digest()


def read_utterance(utterance: Utterance, *, convert: bool = False) -> np.ndarray:
    """Return an utterance's clip, float32 (samples,) at 16 kHz; raises `AudioError`."""
    if isinstance(utterance.source, Path | tuple):
        source, name = _audio(utterance.source, utterance.key)
        begin, end = utterance.begin, utterance.end
        return read_clip(source, name, convert=convert, begin=begin, end=end)
    return utterance.source.render()


def utterance_seconds(utterance: Utterance) -> float:
    """Return the length of a recorded clip in seconds.

    It is 0 for one that cannot be read: the clip then stays in, and its client reports the error.
    """
    if utterance.end is not None:
        return utterance.end - utterance.begin
    try:
        return utterance_format(utterance)[0]
    except AudioError:
        return 0.0


def utterance_format(utterance: Utterance) -> tuple[float, int, int]:
    """Return seconds, rate and channels of a recorded clip's header; raises `AudioError`."""
    assert isinstance(utterance.source, Path | tuple)  # a synthetic clip has no file to look at
    length, rate, channels = clip_format(_audio(utterance.source, utterance.key)[0])
    end = length if utterance.end is None else utterance.end
    return max(0.0, end - utterance.begin), rate, channels


def _audio(source: Path | tuple[Any, int], key: str) -> tuple[Path | bytes, str]:
    """Return the file of a clip or its content, and its name in errors."""
    if isinstance(source, Path):
        return source, str(source)
    table, row = source
    audio = table[row]["audio"]
    if audio["bytes"] is not None:
        return audio["bytes"], audio["path"] or key
    return Path(audio["path"]), audio["path"]
