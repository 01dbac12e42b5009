"""Multilingual LibriSpeech as its archives unpack (openslr.org/94, arXiv:2012.03411).

`mls_LANGUAGE/SPLIT/transcripts.txt` with lines of ID, tab, text; `audio/SPEAKER/BOOK/ID.flac` or
.opus beside it; the genders in `mls_LANGUAGE/metainfo.txt`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fedsim.errors import FedsimError, nearest
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.readers.base import (
    Recordings,
    Row,
    folders_in,
    parts_of,
    require_folder,
    utterances_of,
)
from fedsim.speech.tables import lines_of

COLUMNS = ("file", "id", "text", "transcript", "speaker", "speaker_id", "chapter_id")
_MORE = ("gender", "language")
_ID = re.compile(r"([^_\s]+)_([^_\s]+)_([^_\s]+)")
_FOLDER = re.compile(r"mls_([a-z]+)(_opus)?")
_TABLE, _PEOPLE = "transcripts.txt", "metainfo.txt"


def is_mls(path: Path) -> bool:
    """Return whether a folder is a split, a language or holds languages."""
    return _is_split(path) or _is_language(path) or bool(_languages(path))


def read_mls(corpus: CorpusSettings) -> Recordings:
    """Return the utterances of a split, in the order of its transcripts.

    Raises `FedsimError` if there is no such language or split, or for a line that is none.
    """
    root = require_folder(corpus)
    top = root.parent if _is_split(root) else root
    parts = parts_of(corpus, top, _is_language, _languages(top))
    rows: list[Row] = []
    tables: list[Path] = []
    for prefix, language, folder in parts:
        table = (root if _is_split(root) else _split(folder, corpus.split)) / _TABLE
        people = folder / _PEOPLE
        tables += [table, people] if people.is_file() else [table]
        named = _FOLDER.fullmatch(folder.name)
        genders = _genders(people) if people.is_file() else {}
        rows += _rows(table, prefix, language or (named and named[1]), genders)
    columns = [*COLUMNS, *_MORE]
    utterances, notes = utterances_of(corpus, rows, columns, {}, str(tables[0]))
    if not any(table.name == _PEOPLE for table in tables):
        notes += (f"there is no {_PEOPLE} beside the splits, so no gender is known",)
    return Recordings(utterances, tuple(tables), notes)


def _rows(table: Path, prefix: str, language: str | None, genders: dict[str, str]) -> Iterator[Row]:
    audio = table.parent / "audio"
    suffixes: dict[Path, str] = {}
    for line, text in lines_of(table):
        key, tab, words = text.partition("\t")
        found = _ID.fullmatch(key.strip())
        if not tab or found is None:
            raise FedsimError(
                f"{table}:{line}: a line is SPEAKER_BOOK_NUMBER, a tab and the text; correct it"
            )
        speaker, book, _ = found.groups()
        folder = audio / speaker / book
        if folder not in suffixes:
            some = next(iter(sorted(folder.glob("*.*"))), None) if folder.is_dir() else None
            suffixes[folder] = some.suffix if some else ".flac"
        values = {
            **{"file": key, "id": key, "text": words, "transcript": words, "language": language},
            **{"speaker": speaker, "speaker_id": speaker, "chapter_id": book},
            "gender": genders.get(speaker),
        }
        yield Row(f"{table}:{line}", prefix + key, folder / f"{key}{suffixes[folder]}", values)


def _genders(people: Path) -> dict[str, str]:
    """Return speaker -> F or M: lines of SPEAKER | GENDER | PARTITION | MINUTES | BOOK ID | ..."""
    cells = [[cell.strip() for cell in text.split("|")] for _, text in lines_of(people)]
    return {row[0]: row[1] for row in cells if len(row) > 2 and row[0].upper() != "SPEAKER"}


def _is_split(folder: Path) -> bool:
    return (folder / _TABLE).is_file() and (folder / "audio").is_dir()


def _is_language(folder: Path) -> bool:
    return any(map(_is_split, folders_in(folder).values()))


def _languages(root: Path) -> dict[str, Path]:
    """Return name -> folder of each language."""
    return {n: f for n, f in folders_in(root).items() if _FOLDER.fullmatch(n) and _is_language(f)}


def _split(folder: Path, split: str) -> Path:
    splits = {name: f for name, f in folders_in(folder).items() if _is_split(f)}
    split = "dev" if split == "validation" else split
    if split not in splits:
        raise FedsimError(
            f"corpus.split is {split!r}, and there is no {folder / split / _TABLE}:"
            f" {nearest(split, splits)}"
        )
    return splits[split]
