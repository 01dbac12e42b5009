"""Clips of clients: their metadata, the split into tuning and test clips, and reading the audio.

Tuning clips are unlabelled: the `Utterance` of one has no text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedsim.errors import AudioError, FedsimError
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.audio import clip_seconds, read_clip

GROUPS = ("speaker", "gender", "language")
FIELDS = ("audio", "text", *GROUPS)


class Renderable(Protocol):
    """A clip that is computed on demand, such as `fedsim.speech.voices.Take`."""

    def render(self) -> np.ndarray:
        """Return the clip, float32 (samples,) at 16 kHz; raises `AudioError`."""


@dataclass(frozen=True)
class Utterance:
    """One clip and its metadata.

    `source` is a path, a `datasets` table with a row number, or a clip to be synthesized.
    """

    key: str
    source: Path | tuple[Any, int] | Renderable
    text: str | None = None
    speaker: str | None = None
    gender: str | None = None
    language: str | None = None


@dataclass(frozen=True)
class ClientData:
    """One client's clips: `tuning` (unlabelled) and `test` (held out); no clip is in both."""

    key: str
    tuning: tuple[Utterance, ...]
    test: tuple[Utterance, ...]
    language: str | None = None


class Clients(Mapping[str, ClientData]):
    """Clients by key, each made on demand: thousands take no more memory than one."""

    def __init__(self, keys: Sequence[str], make: Callable[[str], ClientData]) -> None:
        self._keys = dict.fromkeys(keys)
        self._make = make

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
        return Clients(keys, self._make)


def require_clips(client: ClientData, corpus: CorpusSettings) -> None:
    """Check that a client can take part.

    Raises `FedsimError` if it has no tuning clips, no test clips, or a test clip without text.
    """
    total = len(client.tuning) + len(client.test)
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


def read_utterance(utterance: Utterance, *, convert: bool = False) -> np.ndarray:
    """Return an utterance's clip, float32 (samples,) at 16 kHz; raises `AudioError`."""
    if isinstance(utterance.source, Path | tuple):
        source, name = _audio(utterance.source, utterance.key)
        return read_clip(source, name, convert=convert)
    return utterance.source.render()


def utterance_seconds(utterance: Utterance) -> float:
    """Return the length of a recorded clip in seconds.

    It is 0 for one that cannot be read: the clip then stays in, and its client reports the error.
    """
    assert isinstance(utterance.source, Path | tuple)  # a synthetic clip has no file to look at
    source, _ = _audio(utterance.source, utterance.key)
    try:
        return clip_seconds(source)
    except AudioError:
        return 0.0


def _audio(source: Path | tuple[Any, int], key: str) -> tuple[Path | bytes, str]:
    """Return the file of a clip or its content, and its name in errors."""
    if isinstance(source, Path):
        return source, str(source)
    table, row = source
    audio = table[row]["audio"]
    if audio["bytes"] is not None:
        return audio["bytes"], audio["path"] or key
    return Path(audio["path"]), audio["path"]
