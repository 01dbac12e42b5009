"""Clips of clients: what is known of each, who has which, and how a clip is read.

A tuning clip has no text that could be read: its `Utterance` is stripped of it.
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
    """A clip that is made when it is asked for, such as `fedsim.speech.voices.Take`."""

    def render(self) -> np.ndarray:
        """Return the clip, float32 (samples,) at 16 kHz; raises `AudioError`."""


@dataclass(frozen=True)
class Utterance:
    """One clip and what is known of it.

    `source` is a path, a place in a `datasets` table, or what a synthetic speaker is to say.
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
    """Clients by key, each made when it is asked for: thousands cost no more memory than one."""

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
        """Return the clients with these keys only, in this order."""
        return Clients(keys, self._make)


def require_clips(client: ClientData, corpus: CorpusSettings) -> None:
    """Raise `FedsimError` when a client has no tuning clips, no test clips or a test clip no
    text."""
    total = len(client.tuning) + len(client.test)
    if not client.tuning or not client.test:
        which = "tuning" if not client.tuning else "test"
        raise FedsimError(
            f"client {client.key!r} has no {which} clips: the corpus holds {total} of its clips "
            f"and corpus.test_clips takes {corpus.test_clips} first; lower it or leave the client "
            f"out"
        )
    silent = next((u for u in client.test if not u.text), None)
    if silent is not None:
        raise FedsimError(
            f"client {client.key!r}: test clip {silent.key} has no text to compare with; fill in "
            f"its text or remove the clip"
        )


def read_utterance(utterance: Utterance, *, convert: bool = False) -> np.ndarray:
    """Return an utterance's clip, float32 (samples,) at 16 kHz; raises `AudioError`."""
    if isinstance(utterance.source, Path | tuple):
        source, name = _audio(utterance.source, utterance.key)
        return read_clip(source, name, convert=convert)
    return utterance.source.render()


def utterance_seconds(utterance: Utterance) -> float:
    """Return a clip's length; of one that cannot be read 0, so that its client is told when it
    works."""
    assert isinstance(utterance.source, Path | tuple)  # a voice's clip has no length before it is
    source, _ = _audio(utterance.source, utterance.key)
    try:
        return clip_seconds(source)
    except AudioError:
        return 0.0


def _audio(source: Path | tuple[Any, int], key: str) -> tuple[Path | bytes, str]:
    """Return where a clip's samples are, and what an error calls it."""
    if isinstance(source, Path):
        return source, str(source)
    table, row = source
    audio = table[row]["audio"]
    if audio["bytes"] is not None:
        return audio["bytes"], audio["path"] or key
    return Path(audio["path"]), audio["path"]
