"""AudioFolder: audio files and a metadata.csv or metadata.jsonl, at the top or in split folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsim.errors import FedsimError
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.clips import GROUPS
from fedsim.speech.readers.base import (
    Recordings,
    Row,
    folders_in,
    require_folder,
    utterances_of,
)
from fedsim.speech.tables import as_text, csv_rows, jsonl_rows

TABLES = ("metadata.csv", "metadata.jsonl")


def is_folder(path: Path) -> bool:
    """Return whether a folder has metadata, itself or in one of its folders."""
    return any(_tables(folder) for folder in (path, *folders_in(path).values()))


def read_folder(corpus: CorpusSettings) -> Recordings:
    """Return every utterance of a folder, in the order of its metadata.

    Raises `FedsimError` if the folder or its metadata is missing, or the file cannot be read,
    lacks a column, lists a clip twice or has a row that is not what it seems: see `csv_rows`.
    """
    root = require_folder(corpus)
    table = _table(root, corpus.split)
    named = corpus.columns.get("audio", "file_name")
    rows: list[tuple[int, dict[str, Any]]]
    if table.suffix == ".csv":
        columns, rows = csv_rows(table, named)
    else:
        rows = [(n, {k: as_text(v) for k, v in row.items()}) for n, row in jsonl_rows(table)]
        columns = [*dict.fromkeys(key for _, row in rows for key in row)]
    utterances, notes = utterances_of(
        corpus,
        _rows(table, rows, named),
        columns,
        {},
        str(table),
        audio=named,
        refuse_repeats=True,
    )
    return Recordings(utterances, (table,), notes, beside=table.parent)


def _rows(table: Path, rows: list[tuple[int, dict[str, Any]]], named: str) -> Iterator[Row]:
    for line, row in rows:
        where, key = f"{table}:{line}", row.get(named) or ""
        if not key:
            raise FedsimError(f"{where}: the row has no file_name; add it or remove the row")
        yield Row(where, key, table.parent / key, row)


def _tables(folder: Path) -> list[Path]:
    return [folder / name for name in TABLES if os.path.lexists(folder / name)]


def _table(root: Path, split: str) -> Path:
    """Return the metadata of a folder: at its top, or in the folder of the split."""
    below = {name: folder for name, folder in folders_in(root).items() if _tables(folder)}
    found = _tables(root) or (_tables(below[split]) if split in below else [])
    if len(found) > 1:
        raise FedsimError(f"corpus {found[0].parent} has {' and '.join(TABLES)}; remove one")
    if not found and below:
        raise FedsimError(
            f"corpus {root} has metadata in {', '.join(below)} and none for split {split!r}; set"
            f" corpus.split to one of them"
        )
    if not found:
        raise FedsimError(
            f"corpus {root} has no metadata.csv; write one with the columns file_name and any of "
            f"text, {', '.join(GROUPS)}"
        )
    return found[0]
