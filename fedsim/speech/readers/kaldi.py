"""Data folders of Kaldi and ESPnet (kaldi-asr.org/doc/data_prep.html).

`wav.scp` names recordings, `segments` parts of them; `text`, `utt2spk`, `spk2gender` and
`utt2lang` say what is known of each utterance. A line of wav.scp that is a command is refused: a
command from data is never run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from fedsim.base.units import count_words
from fedsim.errors import FedsimError, nearest, quoted
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.readers.base import (
    Recordings,
    Row,
    folders_in,
    placed,
    require_folder,
    utterances_of,
)
from fedsim.speech.tables import as_seconds, word_pairs

COLUMNS = ("file", "text", "speaker", "gender", "language")
_TABLE = "wav.scp"
_ARCHIVE = re.compile(r".*\.ark:\d+")


def is_kaldi(path: Path) -> bool:
    """Return whether a folder is a data folder, or holds some."""
    return any((folder / _TABLE).is_file() for folder in (path, *folders_in(path).values()))


def read_kaldi(corpus: CorpusSettings) -> Recordings:
    """Return the utterances of a data folder, in the order of `segments` or of wav.scp.

    Raises `FedsimError` if there is no such folder, for a command, an archive, and a line of a
    table that is none or names what is not in the others.
    """
    folder = _folder(require_folder(corpus), corpus.split)
    read: list[Path] = []

    def pairs(name: str) -> dict[str, str]:
        table = folder / name
        if not table.is_file():
            return {}
        read.append(table)
        return _pairs(table)

    files = {key: _file(folder, line, name) for line, key, name in _lines(folder / _TABLE)}
    read.append(folder / _TABLE)
    texts, speakers = pairs("text"), pairs("utt2spk")
    genders, languages = pairs("spk2gender"), pairs("utt2lang")
    segments = folder / "segments"
    if segments.is_file():
        read.append(segments)
        clips = _segments(segments, files)
    else:
        clips = ((f"{folder / _TABLE}", key, file, 0.0, None) for key, file in files.items())
    rows: list[Row] = []
    for where, key, file, begin, end in clips:
        speaker = speakers.get(key)
        values = {
            **{"text": texts.get(key), "speaker": speaker, "language": languages.get(key)},
            "gender": genders.get(speaker) if speaker else None,
        }
        rows.append(Row(where, key, file, values, begin, end))
    utterances, notes = utterances_of(corpus, rows, COLUMNS, {}, str(folder))
    known = {row.key for row in rows}
    extra = [key for key in texts if key not in known]
    if extra:
        lines = count_words(len(extra), "line")
        notes += (f"{folder / 'text'}: {lines} without a recording, the first is {extra[0]}",)
    seconds = {r.key: r.end - r.begin for r in rows if r.end is not None}
    return Recordings(utterances, tuple(read), notes, seconds or None)


def _lines(table: Path) -> Iterator[tuple[int, str, str]]:
    for line, key, rest in word_pairs(table):
        if not rest:
            raise FedsimError(f"{table}:{line}: the line has {key!r} only; add what it stands for")
        yield line, key, rest


def _pairs(table: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for line, key, rest in word_pairs(table):
        if key in found:
            raise FedsimError(f"{table}:{line}: {quoted(key)} is listed twice; remove one line")
        found[key] = rest
    return found


def _file(folder: Path, line: int, name: str) -> Path:
    where = f"{folder / _TABLE}:{line}"
    if name.endswith("|") or name.startswith("|"):
        raise FedsimError(
            f"{where}: {quoted(name)} is a command, and a command from data is never run; write its"
            f" output to files and name these"
        )
    if _ARCHIVE.fullmatch(name):
        raise FedsimError(
            f"{where}: {quoted(name)} is a place in an archive, which is not read; write WAV or"
            f" FLAC files and name these"
        )
    return placed(name, folder)


def _segments(
    table: Path, files: dict[str, Path]
) -> Iterator[tuple[str, str, Path, float, float | None]]:
    for line, key, rest in _lines(table):
        where, cells = f"{table}:{line}", rest.split()
        if len(cells) < 3:
            raise FedsimError(f"{where}: a line is UTTERANCE RECORDING BEGIN END; correct it")
        if cells[0] not in files:
            raise FedsimError(
                f"{where}: recording {quoted(cells[0])} is not in {_TABLE}:"
                f" {nearest(cells[0], files)}"
            )
        begin = as_seconds(cells[1], where, "the begin")
        # Kaldi writes -1 for the end of the recording.
        end = None if cells[2] in ("-1", "-1.0") else as_seconds(cells[2], where, "the end")
        yield where, key, files[cells[0]], begin, end


def _folder(root: Path, split: str) -> Path:
    if os.path.lexists(root / _TABLE):
        return root
    below = {name: f for name, f in folders_in(root).items() if (f / _TABLE).is_file()}
    if split not in below:
        raise FedsimError(
            f"corpus.split is {split!r}, and there is no {root / split / _TABLE}:"
            f" {nearest(split, below)}"
        )
    return below[split]
