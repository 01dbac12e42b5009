"""What `fedsim validate` says of a recorded corpus: kind, clips, speakers, hours, and doubts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedsim.base.units import count_words
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.clips import Found, Utterance, utterance_seconds
from fedsim.speech.readers.base import audio_below


def corpus_lines(corpus: CorpusSettings, found: Found, *, deep: bool) -> Iterator[str]:
    """Yield one line of counts, and one for each thing that is to be known of the recordings.

    Args:
        corpus: of the scenario.
        found: by its reader.
        deep: read the header of every recording whose length no table says.
    """
    clips = found.utterances
    speakers = len({u.speaker for u in clips if u.speaker is not None})
    kind = f"{found.kind} (found by auto)" if corpus.kind == "auto" else found.kind
    counts = [
        count_words(len(clips), "clip"),
        count_words(speakers, "speaker") if speakers else "no speaker named",
        _hours(found, deep),
    ]
    yield f"corpus: {kind} at {corpus.path}: {', '.join(counts)}"
    for note in found.notes:
        yield f"corpus: {note}"
    yield from _missing(clips)
    if found.beside is not None:
        yield from _beside(found.beside, clips)


def _hours(found: Found, deep: bool) -> str:
    known = found.seconds or {}
    if not deep and any(u.key not in known and u.end is None for u in found.utterances):
        return "hours not counted (--deep reads the headers)"
    total = sum(known.get(u.key) or utterance_seconds(u) for u in found.utterances)
    if total >= 360:
        return f"{total / 3600:,.1f} hours"
    return f"{total / 3600:.2g} hours ({total:,.1f} s)"


def _missing(clips: Sequence[Utterance]) -> Iterator[str]:
    files = dict.fromkeys(u.source for u in clips if isinstance(u.source, Path))
    gone = [file for file in files if not os.path.lexists(file)]
    if gone:
        yield (
            f"corpus: {len(gone):,} of {count_words(len(files), 'named recording')} are not there,"
            f" the first is {gone[0]}"
        )


def _beside(root: Path, clips: Sequence[Utterance]) -> Iterator[str]:
    """Compare the recordings in a folder with those that its tables name."""
    named = {os.path.realpath(u.source) for u in clips if isinstance(u.source, Path)}
    lying = list(audio_below(root))
    left = [file for file in lying if os.path.realpath(file) not in named]
    if left:
        yield (
            f"corpus: {len(left):,} of {count_words(len(lying), 'recording')} in {root} belong to"
            f" no row, the first is {left[0].relative_to(root)}"
        )
