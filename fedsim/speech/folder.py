"""Recordings in a local folder in the AudioFolder layout."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from fedsim.base.files import read_text
from fedsim.base.text import composed, has_control
from fedsim.errors import FedsimError, quoted
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.clips import GROUPS, Clients, Utterance
from fedsim.speech.grouping import grouped, named_columns

MAX_TABLE = 2**30
"""Bytes of a metadata.csv that is read."""
MAX_NAME = 4_096
"""Characters of a file's name in it."""


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
    if not os.path.isdir(root):
        raise FedsimError(f"corpus.path {root} is not a folder; check the path")
    if not os.path.lexists(table):
        raise FedsimError(
            f"corpus {root} has no metadata.csv; write one with the columns file_name and any of "
            f"text, {', '.join(GROUPS)}"
        )
    text = read_text(table, MAX_TABLE)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        columns = list(reader.fieldnames or ())
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise FedsimError(f"{table} cannot be read as CSV ({error}); save it as such") from error
    names = named_columns(corpus, columns, {"audio": "file_name"}, str(table))
    utterances: list[Utterance] = []
    seen: dict[str, str] = {}
    for line, row in rows:
        key = row[names["audio"]]
        if not key:
            raise FedsimError(f"{table}:{line}: the row has no file_name; add it or remove the row")
        if len(key) > MAX_NAME or has_control(key):
            raise FedsimError(f"{table}:{line}: {quoted(key)} is no name of a file; correct it")
        place = composed(os.path.normpath(key))
        if place in seen:
            other = "" if seen[place] == key else f", above as {quoted(seen[place])}"
            raise FedsimError(
                f"{table}:{line}: {quoted(key)} is listed twice{other}; remove one of the rows"
            )
        seen[place] = key
        fields = {f: (row[c] or "").strip() or None for f, c in names.items() if f != "audio"}
        utterances.append(Utterance(key, root / key, **fields))
    return utterances
