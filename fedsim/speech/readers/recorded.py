"""Opening a recorded corpus of any layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedsim.errors import FedsimError
from fedsim.scenario.corpus import CorpusSettings
from fedsim.scenario.readers import OPTIONAL_KEYS, READERS
from fedsim.speech.clips import Clients
from fedsim.speech.grouping import grouped
from fedsim.speech.readers.base import Recordings
from fedsim.speech.readers.detect import detect


def resolved(corpus: CorpusSettings) -> CorpusSettings:
    """Return the settings with the kind that `auto` finds; any other kind stays.

    Raises `FedsimError` as `detect` does, and for a setting that the kind does not take.
    """
    if corpus.kind != "auto":
        return corpus
    kind = detect(str(corpus.path))
    reader = READERS[kind]
    for key in OPTIONAL_KEYS:
        given = getattr(corpus, key) != type(corpus).model_fields[key].get_default()
        if given and key not in (*reader.needs, *reader.takes):
            raise FedsimError(
                f"corpus.path {corpus.path} is a corpus of kind {kind!r}, which takes no {key}:"
                f" remove corpus.{key}"
            )
    return corpus.model_copy(update={"kind": kind})


def read_recordings(corpus: CorpusSettings) -> Recordings:
    """Return what a recorded corpus holds, without reading audio.

    Raises `FedsimError` if its layout is not known, or as its reader does.
    """
    corpus = resolved(corpus)
    read = READERS[corpus.kind].read
    if read is None:
        raise FedsimError(f"corpus kind {corpus.kind!r} has no recordings on disk; name another")
    found: Recordings = read(corpus)
    return found


def open_recorded(corpus: CorpusSettings, seed: int) -> Clients:
    """Return the clients of a recorded corpus.

    Raises `FedsimError` as `read_recordings` and `grouped` do.
    """
    corpus = resolved(corpus)
    if READERS[corpus.kind].read is None:  # of another package, which opens it itself
        opened: Clients = READERS[corpus.kind].open(corpus, seed)
        return opened
    recordings = read_recordings(corpus)
    clients = grouped(recordings.utterances, corpus, seed)
    assert clients.found is not None
    clients.found = replace(
        clients.found,
        notes=(*recordings.notes, *clients.found.notes),
        seconds=recordings.seconds,
        beside=recordings.beside,
    )
    return clients


def read_files(corpus: CorpusSettings) -> list[Path] | None:
    """Return the files that a recorded corpus is read from, those that are there, in order.

    None if results depend on all that lies below its path, or if only its reader knows.

    Raises `FedsimError` as `read_recordings` does.
    """
    corpus = resolved(corpus)
    if READERS[corpus.kind].read is None or READERS[corpus.kind].reads_all:
        return None
    found = read_recordings(corpus)
    clips = (u.source for u in found.utterances if isinstance(u.source, Path))
    return sorted(file for file in {*found.tables, *clips} if file.is_file())
