"""A look at recordings before there is a scenario: their layout, clips, lengths and groups."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.errors import AudioError, FedsimError
from fedsim.scenario.corpus import CorpusSettings
from fedsim.scenario.readers import READERS
from fedsim.speech.clips import Utterance, utterance_format
from fedsim.speech.readers import detect, read_recordings
from fedsim.speech.tidy import tidied

ENOUGH = 4
"""Clips of a client that can be tuned and tested: two of each."""
_HEADERS = 500
"""Clips whose header is read."""
_SPLITS = ("test", "validated", "dev", "validation", "train")
_SPLIT = "test"
"""What `corpus.split` is where a scenario does not say."""


@dataclass(frozen=True)
class Survey:
    """What a folder of recordings holds."""

    kind: str
    """Its layout, a name of `corpus.kind`."""
    path: Path
    split: str | None
    """The split that was read; None where the layout has none, or only one."""
    utterances: tuple[Utterance, ...]
    """All that can be used, with texts or without."""
    seconds: float
    """All clips together, estimated from those whose header was read."""
    longest: float
    """Seconds of the longest of them."""
    looked_at: int
    """Clips whose header was read."""
    uniform: bool
    """Whether all of these are mono and at 16 kHz."""

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that are stated, sorted."""
        return tuple(sorted({u.language for u in self.utterances if u.language}))

    def groups(self, by: str) -> dict[str, list[Utterance]]:
        """Return key -> clips of each speaker, gender or language, by key."""
        found: dict[str, list[Utterance]] = defaultdict(list)
        for utterance in self.utterances:
            value = getattr(utterance, by)
            if value is not None:
                found[value].append(utterance)
        return dict(sorted(found.items()))


def survey(path: Path) -> Survey:
    """Look at a folder of recordings, or a manifest of them, without decoding audio.

    Of the splits that the layout has, the first in which two speakers have `ENOUGH` clips is read,
    else the first.

    Raises:
        FedsimError: if the layout is not known, the tables cannot be read, or there is no clip.
    """
    kind = detect(str(path))
    split, utterances = _chosen(kind, path)
    if not utterances:
        raise FedsimError(
            f"{path}: it has the layout {kind!r} and holds no clip that can be used: name another"
            f" folder"
        )
    step = max(1, len(utterances) // _HEADERS)
    formats = [f for u in utterances[::step] if (f := _format(u)) is not None]
    if not formats:
        raise FedsimError(
            f"{path}: no recording can be read, such as {utterances[0].key}: check that the audio"
            f" lies where the tables of the layout {kind!r} say"
        )
    lengths = [seconds for seconds, _, _ in formats]
    return Survey(
        kind,
        path,
        split,
        tuple(utterances),
        sum(lengths) / len(lengths) * len(utterances),
        max(lengths),
        len(formats),
        all((rate, channels) == (16_000, 1) for _, rate, channels in formats),
    )


def _chosen(kind: str, path: Path) -> tuple[str | None, list[Utterance]]:
    """Return the split to read, and its utterances."""
    first: tuple[str | None, list[Utterance]] | None = None
    problem: FedsimError | None = None
    for split in _splits(kind, path):
        try:
            found = _read(kind, path, split)
        except FedsimError as error:
            problem = problem or error
            continue
        named = None if split == _SPLIT else split
        if first is None and found:
            first = named, found
        if sum(n >= ENOUGH for n in _speakers(found).values()) > 1:
            return named, found
    if first is not None:
        return first
    if problem is not None:
        raise problem
    return None, []


def _read(kind: str, path: Path, split: str) -> list[Utterance]:
    corpus = CorpusSettings(kind=kind, path=str(path), group_by="speaker", split=split)
    return tidied(read_recordings(corpus).utterances, corpus)[0]


def _splits(kind: str, path: Path) -> Iterator[str]:
    """Yield names that a split may have: the usual ones, and those of folders, tests first."""
    if "split" not in READERS[kind].takes or READERS[kind].splits == "-":
        yield _SPLIT
        return
    below = []
    if os.path.isdir(path):
        below = sorted(f.name for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
    below.sort(key=lambda name: not name.startswith("test"))
    yield from dict.fromkeys((_SPLIT, *below, *_SPLITS))


def _speakers(utterances: Sequence[Utterance]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for utterance in utterances:
        if utterance.speaker is not None and utterance.text:
            counts[utterance.speaker] += 1
    return counts


def _format(utterance: Utterance) -> tuple[float, int, int] | None:
    """Return seconds, rate and channels of a clip; None if it cannot be read."""
    try:
        return utterance_format(utterance)
    except AudioError:
        return None
