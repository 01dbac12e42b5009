"""A look at recordings before there is a scenario: their layout, clips, lengths and groups."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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


_MAX_SPLITS = 20
"""Splits that are looked at."""
_OTHER_NAMES = {
    "text": ("transcription", "transcript", "sentence", "normalized_text", "label"),
    "speaker": ("speaker_id", "client_id", "user_id", "spk_id"),
}
"""What tables call texts and speakers, beside `text` and `speaker`."""


@dataclass(frozen=True)
class _Reading:
    """What was read of a corpus, and how."""

    kind: str
    path: Path
    split: str
    columns: Mapping[str, str]
    utterances: list[Utterance]


@dataclass(frozen=True)
class Survey:
    """What a folder of recordings holds."""

    kind: str
    """Its layout, a name of `corpus.kind`."""
    path: Path
    split: str | None
    """The split that was read; None if it is `test`, or the layout has none."""
    columns: Mapping[str, str]
    """Columns that have another name, as `corpus.columns`."""
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


def survey(path: Path) -> Survey:
    """Look at a folder of recordings, or a manifest of them, without decoding audio.

    Of the splits that the layout has, the first in which two speakers have `ENOUGH` clips is read,
    else the first.

    Raises:
        FedsimError: if the layout is not known, the tables cannot be read, or there is no clip.
    """
    kind = detect(str(path))
    chosen = _chosen(kind, path)
    utterances = chosen.utterances
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
        None if chosen.split == _SPLIT else chosen.split,
        chosen.columns,
        tuple(utterances),
        sum(lengths) / len(lengths) * len(utterances),
        max(lengths),
        len(formats),
        all((rate, channels) == (16_000, 1) for _, rate, channels in formats),
    )


def _chosen(kind: str, path: Path) -> _Reading:
    """Return the split and columns to read, and their utterances."""
    first: _Reading | None = None
    problem: FedsimError | None = None
    for split in _splits(kind, path):
        try:
            found = _named(_read(kind, path, split))
        except FedsimError as error:
            problem = problem or error
            continue
        if sum(n >= ENOUGH for n in _speakers(found.utterances).values()) > 1:
            return found
        if first is not None and found.utterances == first.utterances:
            break  # the layout has no splits
        if first is None and found.utterances:
            first = found
    if first is not None:
        return first
    if problem is not None:
        raise problem
    return _Reading(kind, path, _SPLIT, {}, [])


def _named(found: _Reading) -> _Reading:
    """Return a reading with the columns mapped that have another name, for texts and speakers."""
    for field, names in _OTHER_NAMES.items():
        for name in names if "columns" in READERS[found.kind].takes else ():
            if any(getattr(u, field) for u in found.utterances):
                break
            with suppress(FedsimError):  # there is no such column
                columns = {**found.columns, field: name}
                found = _read(found.kind, found.path, found.split, columns)
    return found


def _read(kind: str, path: Path, split: str, columns: Mapping[str, str] | None = None) -> _Reading:
    corpus = CorpusSettings(
        kind=kind, path=str(path), group_by="speaker", split=split, columns=dict(columns or {})
    )
    utterances = tidied(read_recordings(corpus).utterances, corpus)[0]
    return _Reading(kind, path, split, dict(columns or {}), utterances)


def _splits(kind: str, path: Path) -> Iterator[str]:
    """Yield names that a split may have: the usual ones, and those of folders, tests first."""
    if "split" not in READERS[kind].takes or READERS[kind].splits == "-":
        yield _SPLIT
        return
    below = []
    if os.path.isdir(path):
        below = sorted(f.name for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
    below.sort(key=lambda name: not name.startswith("test"))
    yield from list(dict.fromkeys((_SPLIT, *below, *_SPLITS)))[:_MAX_SPLITS]


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
