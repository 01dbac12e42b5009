"""Lhotse manifests (lhotse.readthedocs.io): recordings and supervisions, or cuts, as JSON lines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.errors import FedsimError, nearest, quoted
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.readers.base import Recordings, Row, placed, utterances_of
from fedsim.speech.tables import as_seconds, as_text, first_object, jsonl_rows

COLUMNS = ("file", "id", "text", "speaker", "gender", "language")
_ENDINGS = (".jsonl", ".jsonl.gz")
_KINDS = ("recordings", "supervisions", "cuts")
_MAX_LOOKED_AT = 100


@dataclass(frozen=True)
class _Manifests:
    """Name -> file of each kind of manifest."""

    recordings: dict[str, Path]
    supervisions: dict[str, Path]
    cuts: dict[str, Path]


def is_lhotse(path: Path) -> bool:
    """Return whether a folder has recordings and supervisions, or cuts, or a file is of cuts."""
    found = _manifests(path)
    return bool(found.cuts or (found.recordings and found.supervisions))


def read_lhotse(corpus: CorpusSettings) -> Recordings:
    """Return the utterances of the supervisions, in their order.

    Raises `FedsimError` if there are no such manifests, for a recording that is no audio file or
    is changed on the way (`transforms`), for a channel but the first, and for a line that is none.
    """
    path = Path(str(corpus.path))
    found = _manifests(path)
    tables: tuple[Path, ...]
    if found.recordings and found.supervisions:
        recordings = _chosen(found.recordings, "recordings", path, corpus.split)
        supervisions = _chosen(found.supervisions, "supervisions", path, corpus.split)
        rows = list(_of_supervisions(recordings, supervisions))
        tables = (recordings, supervisions)
    elif found.cuts:
        cuts = _chosen(found.cuts, "cuts", path, corpus.split)
        rows, tables = list(_of_cuts(cuts)), (cuts,)
    else:
        raise FedsimError(
            f"corpus.path {path} has no recordings.jsonl.gz and supervisions.jsonl.gz, or"
            f" cuts.jsonl.gz; name the folder that has them"
        )
    custom = dict.fromkeys(key for row in rows for key in row.values)
    columns = [*dict.fromkeys((*COLUMNS, *custom))]
    utterances, notes = utterances_of(corpus, rows, columns, {}, str(tables[-1]))
    seconds = {row.key: row.end - row.begin for row in rows if row.end is not None}
    return Recordings(utterances, tables, notes, seconds)


def _of_supervisions(recordings: Path, supervisions: Path) -> Iterator[Row]:
    files: dict[str, tuple[Path, float]] = {}
    for line, row in jsonl_rows(recordings):
        files[str(row.get("id"))] = _file(row, f"{recordings}:{line}", recordings.parent)
    for line, row in jsonl_rows(supervisions):
        where, name = f"{supervisions}:{line}", str(row.get("recording_id"))
        if name not in files:
            raise FedsimError(
                f"{where}: recording {quoted(name)} is not in {recordings}: {nearest(name, files)}"
            )
        yield _row(row, where, *files[name], 0.0)


def _of_cuts(cuts: Path) -> Iterator[Row]:
    for line, cut in jsonl_rows(cuts):
        where = f"{cuts}:{line}"
        if cut.get("type", "MonoCut") != "MonoCut" or not isinstance(cut.get("recording"), dict):
            raise FedsimError(
                f"{where}: the cut is not a MonoCut with a recording; export recordings and"
                f" supervisions"
            )
        file = _file(cut["recording"], where, cuts.parent)
        begin = as_seconds(cut.get("start", 0), where, "start")
        for row in cut.get("supervisions") or ():
            yield _row(row, where, *file, begin)


def _row(row: Mapping[str, Any], where: str, file: Path, total: float, offset: float) -> Row:
    if row.get("channel", 0) not in (0, [0]):
        raise FedsimError(
            f"{where}: the supervision is of channel {row['channel']!r}, and the first only is"
            f" read; write one file per channel"
        )
    try:
        begin = offset + float(row.get("start", 0))
    except (TypeError, ValueError):
        begin = -1.0
    # Relative to a cut, a supervision may begin a little before it.
    begin = as_seconds(0.0 if -0.1 < begin < 0 else begin, where, "start")
    end = begin + as_seconds(row.get("duration"), where, "duration")
    if begin == 0 and abs(end - total) < 1e-3:
        end = total
    custom = row.get("custom") if isinstance(row.get("custom"), dict) else {}
    values = {k: as_text(v) for k, v in {**(custom or {}), **row}.items()}
    return Row(where, str(row.get("id")), file, values, begin, end)


def _file(recording: Mapping[str, Any], where: str, folder: Path) -> tuple[Path, float]:
    """Return the file of a recording and its length in seconds."""
    sources = recording.get("sources")
    source = sources[0] if isinstance(sources, list) and len(sources) == 1 else None
    if not isinstance(source, dict) or not isinstance(source.get("source"), str):
        raise FedsimError(f"{where}: a recording has one source that is a file; export one")
    if source.get("type") == "command":
        raise FedsimError(
            f"{where}: the source {quoted(source['source'])} is a command, and a command from data"
            f" is never run; write its output to files and name these"
        )
    if source.get("type") != "file":
        raise FedsimError(
            f"{where}: the source is of type {source.get('type')!r}; export it as an audio file"
        )
    if recording.get("transforms"):
        raise FedsimError(
            f"{where}: the recording is changed when Lhotse reads it (transforms); export it as an"
            f" audio file"
        )
    total = as_seconds(recording.get("duration"), where, "duration")
    return placed(source["source"], folder), total


def _manifests(path: Path) -> _Manifests:
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(f for f in path.iterdir() if f.name.endswith(_ENDINGS))
    else:
        files = []
    found: dict[str, dict[str, Path]] = {kind: {} for kind in _KINDS}
    for file in files[:_MAX_LOOKED_AT]:
        first = first_object(file)
        if "sources" in first:
            found["recordings"][file.name] = file
        elif "recording_id" in first:
            found["supervisions"][file.name] = file
        elif "recording" in first and "supervisions" in first:
            found["cuts"][file.name] = file
    return _Manifests(**found)


def _chosen(files: dict[str, Path], kind: str, path: Path, split: str) -> Path:
    """Return the only manifest of a kind, or the one whose name has the split."""
    if len(files) == 1:
        return next(iter(files.values()))
    named = [file for name, file in files.items() if split in _words(name)]
    if len(named) != 1:
        raise FedsimError(
            f"corpus.split is {split!r}, and of the {kind} in {path} {len(named)} have it in their"
            f" name: {nearest(split, files)}; name the folder of one, or another split"
        )
    return named[0]


def _words(name: str) -> list[str]:
    """Return the words of a name such as librispeech_recordings_test-clean.jsonl.gz."""
    stem = os.path.basename(name).split(".jsonl")[0]
    words = stem.split("_")
    return [*words, *("_".join(words[i:]) for i in range(len(words)))]
