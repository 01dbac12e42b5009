"""Clips of clients: their metadata, the split into tuning and test clips, and reading the audio.

Tuning clips are unlabelled: the `Utterance` of one has no text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedsim.errors import AudioError
from fedsim.speech.audio import clip_header, read_clip

GROUPS = ("speaker", "gender", "language")
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


def read_utterance(utterance: Utterance, *, convert: bool = False) -> np.ndarray:
    """Return an utterance's clip, float32 (samples,) at 16 kHz; raises `AudioError`."""
    if isinstance(utterance.source, Path | tuple):
        source, name = utterance_audio(utterance)
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
    header = clip_header(utterance_audio(utterance)[0])
    end = header.seconds if utterance.end is None else utterance.end
    return max(0.0, end - utterance.begin), header.rate, header.channels


def utterance_audio(utterance: Utterance) -> tuple[Path | bytes, str]:
    """Return the file of a recorded clip or its content, and its name in errors."""
    source = utterance.source
    if isinstance(source, Path):
        return source, str(source)
    assert isinstance(source, tuple)  # a synthetic clip has no file
    table, row = source
    audio = table[row]["audio"]
    if audio["bytes"] is not None:
        return audio["bytes"], audio["path"] or utterance.key
    return Path(audio["path"]), audio["path"]
