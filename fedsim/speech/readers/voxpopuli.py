"""VoxPopuli's transcribed data as its own script cuts it (facebookresearch/voxpopuli).

`LANGUAGE/asr_SPLIT.tsv` without quoting, and `LANGUAGE/YEAR/ID.ogg`.
"""

from __future__ import annotations

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
from fedsim.speech.tables import tsv_rows

SPLITS = ("train", "dev", "test")
_COLUMNS = {"id", "raw_text", "normalized_text"}
_NOBODY = ("", "None")


def is_voxpopuli(path: Path) -> bool:
    """Return whether a folder is that of a language, or holds such folders."""
    return _is_language(path) or any(map(_is_language, folders_in(path).values()))


def read_voxpopuli(corpus: CorpusSettings) -> Recordings:
    """Return the utterances of a split, in the order of its TSV, one language after the other.

    Raises `FedsimError` if there is no such language or split, or for a row that is not what it
    seems: see `tsv_rows`.
    """
    root = require_folder(corpus)
    parts = parts_of(corpus, root, _is_language)
    rows: list[Row] = []
    tables: list[Path] = []
    columns: dict[str, None] = {}
    for prefix, language, folder in parts:
        table = _table(folder, corpus.split)
        found, cells = tsv_rows(table)
        if not set(found) >= _COLUMNS:
            raise FedsimError(
                f"{table}:1: the columns are {', '.join(found)}, without"
                f" {', '.join(sorted(_COLUMNS - set(found)))}; cut it with VoxPopuli's get_asr_data"
            )
        columns |= dict.fromkeys([*found, "language"])
        tables.append(table)
        for line, row in cells:
            name = row["id"]
            who = row.get("speaker_id", "")
            values: dict[str, str | None] = {**row, "language": language or folder.name}
            values["speaker_id"] = None if who in _NOBODY else who
            file = folder / name[:4] / f"{name}.ogg"
            rows.append(Row(f"{table}:{line}", prefix + name, file, values))
    renamed = {"text": "normalized_text", "speaker": "speaker_id"}
    utterances, notes = utterances_of(
        corpus, rows, list(columns), renamed, str(tables[0]), audio="id"
    )
    return Recordings(utterances, tuple(tables), notes)


def _tables(folder: Path) -> dict[str, Path]:
    found = {split: folder / f"asr_{split}.tsv" for split in SPLITS}
    return {split: table for split, table in found.items() if table.is_file()}


def _is_language(folder: Path) -> bool:
    return bool(_tables(folder))


def _table(folder: Path, split: str) -> Path:
    tables = _tables(folder)
    split = "dev" if split == "validation" else split
    if split not in tables:
        raise FedsimError(
            f"corpus.split is {split!r}, and there is no {folder / f'asr_{split}.tsv'}:"
            f" {nearest(split, tables)}"
        )
    return tables[split]
