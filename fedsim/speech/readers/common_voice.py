"""Common Voice as its archives unpack: clips/ and one TSV per split, in a folder per language.

Texts hold quotation marks that nobody closes: the TSV files have no quoting.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
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

CLIPS = "clips"
_NEEDED = {"client_id", "path", "sentence"}
_LENGTHS = "clip_durations.tsv"


def is_common_voice(path: Path) -> bool:
    """Return whether a folder is that of a language, or holds such folders."""
    return _is_language(path) or any(map(_is_language, folders_in(path).values()))


def read_common_voice(corpus: CorpusSettings) -> Recordings:
    """Return the utterances of a split, in the order of its TSV, one language after the other.

    Raises `FedsimError` if there is no such language or split, or for a row that is not what it
    seems: see `tsv_rows`.
    """
    root = require_folder(corpus)
    parts = parts_of(corpus, root, _is_language)
    tables: list[Path] = []
    columns: dict[str, None] = {}
    rows: list[Iterator[Row]] = []
    seconds: dict[str, float] = {}
    for prefix, language, folder in parts:
        table = _table(folder, corpus.split)
        found, cells = tsv_rows(table)
        if not set(found) >= _NEEDED:
            raise FedsimError(
                f"{table}:1: the columns are {', '.join(found)}, without"
                f" {', '.join(sorted(_NEEDED - set(found)))}; name a folder of Common Voice"
            )
        columns |= dict.fromkeys([*found, "language"])
        rows.append(_rows(table, cells, prefix, language))
        tables.append(table)
        if (lengths := folder / _LENGTHS).is_file():
            _, pairs = tsv_rows(lengths)
            for _, pair in pairs:
                name, length = list(pair.values())[:2]
                if length.isdigit():
                    seconds[prefix + name] = int(length) / 1000
    renamed = {"text": "sentence", "speaker": "client_id"}
    utterances, notes = utterances_of(
        corpus, chain.from_iterable(rows), list(columns), renamed, str(tables[0]), audio="path"
    )
    known = {u.key: seconds[u.key] for u in utterances if u.key in seconds}
    return Recordings(utterances, tuple(tables), notes, known if known else None)


def _rows(
    table: Path, cells: Iterator[tuple[int, dict[str, str]]], prefix: str, language: str | None
) -> Iterator[Row]:
    clips = table.parent / CLIPS
    for line, row in cells:
        name = row["path"].strip()
        if not name:
            raise FedsimError(f"{table}:{line}: the row has no path; add it or remove the row")
        values = {**row, "language": language or row.get("locale") or table.parent.name}
        # The oldest releases leave out the ending.
        file = name if "." in name else f"{name}.mp3"
        yield Row(f"{table}:{line}", prefix + name, clips / file, values)


def _tsv(folder: Path) -> dict[str, Path]:
    """Return split -> TSV of utterances; there are TSV of other things beside them."""
    if not (folder / CLIPS).is_dir():
        return {}
    return {
        file.stem: file
        for file in sorted(folder.glob("*.tsv"))
        if set(first_line(file).rstrip("\r").split("\t")) >= _NEEDED
    }


def _is_language(folder: Path) -> bool:
    return bool(_tsv(folder))


def _table(folder: Path, split: str) -> Path:
    tables = _tsv(folder)
    if split == "validation" and "dev" in tables:
        split = "dev"
    if split not in tables:
        raise FedsimError(
            f"corpus.split is {split!r}, and there is no {folder / split}.tsv:"
            f" {nearest(split, tables)}"
        )
    return tables[split]
