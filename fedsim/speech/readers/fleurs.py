"""FLEURS as downloaded (arXiv:2205.12446): a TSV without a header per language and split.

Its columns are those of the data set's own script: id, file, raw text, text, characters, samples,
gender. The recordings lie in `SPLIT/` (Google's archives) or `audio/SPLIT/` (the hub's, unpacked).
"""

from __future__ import annotations

import os
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
from fedsim.speech.tables import first_line, tsv_rows

COLUMNS = ("id", "file", "raw_transcription", "transcription", "characters", "samples", "gender")
_RATE = 16_000
SPLITS = ("train", "dev", "test")


def is_fleurs(path: Path) -> bool:
    """Return whether a folder is that of a language, or holds such folders."""
    return any(_is_language(f) for places in (path, path / "data") for f in _with_below(places))


def read_fleurs(corpus: CorpusSettings) -> Recordings:
    """Return the utterances of a split, in the order of its TSV, one language after the other.

    FLEURS names no speakers.

    Raises `FedsimError` if there is no such language or split, if the recordings are not
    unpacked, or for a row that is not what it seems: see `tsv_rows`.
    """
    root = require_folder(corpus)
    below = folders_in(root) | folders_in(root / "data")
    parts = parts_of(corpus, root, _is_language, below)
    rows: list[Row] = []
    tables: list[Path] = []
    seconds: dict[str, float] = {}
    for prefix, language, folder in parts:
        table = _table(folder, corpus.split)
        tables.append(table)
        clips = _clips(folder, table)
        for line, row in tsv_rows(table, COLUMNS)[1]:
            key = prefix + row["file"]
            values = {**row, "language": language or folder.name}
            rows.append(Row(f"{table}:{line}", key, clips / row["file"], values))
            if row["samples"].isdigit():
                seconds[key] = int(row["samples"]) / _RATE
    columns = [*COLUMNS, "language"]
    renamed = {"text": "raw_transcription"}
    utterances, notes = utterances_of(corpus, rows, columns, renamed, str(tables[0]))
    return Recordings(utterances, tuple(tables), notes, {u.key: seconds[u.key] for u in utterances})


def _with_below(path: Path) -> list[Path]:
    return [path, *folders_in(path).values()]


def _is_language(folder: Path) -> bool:
    return any(_is_table(folder / f"{split}.tsv") for split in SPLITS)


def _is_table(file: Path) -> bool:
    cells = first_line(file).split("\t")
    return len(cells) == len(COLUMNS) and os.path.splitext(cells[1])[1].lower() == ".wav"


def _table(folder: Path, split: str) -> Path:
    split = "dev" if split == "validation" else split
    tables = {name: folder / f"{name}.tsv" for name in SPLITS if _is_table(folder / f"{name}.tsv")}
    if split not in tables:
        raise FedsimError(
            f"corpus.split is {split!r}, and there is no {folder / split}.tsv of FLEURS:"
            f" {nearest(split, tables)}"
        )
    return tables[split]


def _clips(folder: Path, table: Path) -> Path:
    """Return the folder of the recordings of a table."""
    split = table.stem
    places = (folder / split, folder / "audio" / split)
    found = next((place for place in places if place.is_dir()), None)
    if found is not None:
        return found
    packed = folder / "audio" / f"{split}.tar.gz"
    what = f"unpack {packed}" if packed.is_file() else f"put them into {places[0]}"
    raise FedsimError(f"{table}: the recordings of this table are not there; {what}")
