"""Recordings in a local folder in the AudioFolder layout."""

from __future__ import annotations

import csv
from pathlib import Path

from fedsim.errors import FedsimError
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.clips import GROUPS, Clients, Utterance
from fedsim.speech.grouping import grouped, named_columns


def open_folder(corpus: CorpusSettings, seed: int) -> Clients:
    """Return the clients of a folder of audio files with a metadata.csv.

    Raises `FedsimError` as `read_folder` does, and if no clip names what the corpus is grouped by.
    """
    return grouped(read_folder(corpus), corpus, seed)


def read_folder(corpus: CorpusSettings) -> list[Utterance]:
    """Return every utterance of a folder, in the order of its metadata.csv.

    Raises `FedsimError` if the folder or its metadata.csv is missing, or the file cannot be read,
    lacks a column or lists a clip twice.
    """
    root = Path(str(corpus.path))
    table = root / "metadata.csv"
    if not root.is_dir():
        raise FedsimError(f"corpus.path {root} is not a folder; check the path")
    if not table.is_file():
        raise FedsimError(
            f"corpus {root} has no metadata.csv; write one with the columns file_name and any of "
            f"text, {', '.join(GROUPS)}"
        )
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FedsimError(
            f"{table} cannot be read as UTF-8 CSV ({error}); save it as such"
        ) from error
    names = named_columns(corpus, columns, {"audio": "file_name"}, str(table))
    utterances, seen = [], set()
    for line, row in rows:
        key = row[names["audio"]]
        if not key:
            raise FedsimError(f"{table}:{line}: the row has no file_name; add it or remove the row")
        if key in seen:
            raise FedsimError(f"{table}:{line}: {key!r} is listed twice; remove one of the rows")
        seen.add(key)
        fields = {f: (row[c] or "").strip() or None for f, c in names.items() if f != "audio"}
        utterances.append(Utterance(key, root / key, **fields))
    return utterances
