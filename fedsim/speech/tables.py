"""Tables as corpora have them, line by line: CSV, TSV without quoting, JSON lines, and word lists.

Each gives a row with its line, and refuses a row that is not what it seems: read loosely, a
quotation mark that nobody closes takes the rows after it into one cell.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedsim.base.files import read_text, require_regular
from fedsim.errors import FedsimError, quoted
from fedsim.speech.audio import AUDIO_SUFFIXES

MAX_TABLE = 2**30
"""Bytes of a table that is read, unpacked."""
MAX_CELL = 2**20
"""Characters of a cell in a CSV file."""
MAX_TIME = 1e6
"""Seconds into a recording: more is no time."""
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def csv_rows(path: Path, named: str | None = None) -> tuple[list[str], list[tuple[int, dict]]]:
    """Return the columns of a CSV file with a header, and its rows with the line each ends on.

    A short row lacks its last cells; blank lines are no rows.

    Args:
        path: the file.
        named: column that names files. A quoted cell that holds a line break, and after it
            what looks like another row of such a file, is refused.

    Raises:
        FedsimError: for a file that is not CSV in UTF-8, a quotation mark that is not closed or
            stands within a cell, a row of more cells than columns, other separators than commas,
            columns of one name, and rows within a cell.
    """
    text = read_text(path, MAX_TABLE)
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    rows: list[tuple[int, dict]] = []
    first = 1
    try:
        for cells in reader:
            line, first = first, reader.line_num + 1
            if not cells:
                continue
            if not columns:
                columns = cells
                _check_header(path, columns)
                continue
            if len(cells) > len(columns):
                raise FedsimError(
                    f"{path}:{line}: the row has {len(cells)} cells and the header"
                    f" {len(columns)}; put a text that has a comma between quotation marks"
                )
            if reader.line_num > line:
                _check_lines(path, line, cells, columns, named)
            rows.append((reader.line_num, dict(zip(columns, cells, strict=False))))
    except csv.Error as error:
        raise FedsimError(
            f"{path}:{first}: the row cannot be read as CSV ({error}): a cell that begins with a"
            f" quotation mark ends with one, and one within it is written twice; correct it"
        ) from error
    return columns, rows


def _check_header(path: Path, columns: Sequence[str]) -> None:
    if len(columns) == 1:
        for separator, name in _SEPARATORS.items():
            if separator in columns[0]:
                raise FedsimError(
                    f"{path}:1: the columns are separated by {name} ({quoted(columns[0])}); save"
                    f" the file with commas"
                )
    for name in columns:
        if columns.count(name) > 1:
            raise FedsimError(f"{path}:1: two columns are called {name!r}; rename one")


def _check_lines(
    path: Path, line: int, cells: Sequence[str], columns: Sequence[str], named: str | None
) -> None:
    """Refuse a row of several lines, one of which looks like a row itself."""
    at = columns.index(named) if named in columns else 0
    for cell in cells:
        for number, part in enumerate(cell.splitlines()[1:], start=1):
            within = part.split(",")
            name = within[at].strip().strip('"') if at < len(within) else ""
            if len(within) > 1 and os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES:
                raise FedsimError(
                    f"{path}:{line}: a cell of this row begins with a quotation mark that is not"
                    f" closed before line {line + number}, which looks like a row of its own"
                    f" ({quoted(part)}); write a quotation mark in a text twice, and one around"
                    f" the text"
                )


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank, also of a gzip file (.gz).

    Lines end with a line feed only: a text may hold other characters that break lines.
    """
    text = _unpacked(path) if path.suffix == ".gz" else read_text(path, MAX_TABLE)
    for number, line in enumerate(io.StringIO(text, newline="\n"), start=1):
        line = line.removesuffix("\n").removesuffix("\r")
        if line.strip():
            yield number, line


def _unpacked(path: Path) -> str:
    try:
        require_regular(path)
        with gzip.open(path) as file:
            content = file.read(MAX_TABLE + 1)
        if len(content) > MAX_TABLE:
            raise FedsimError(f"{path}: the file has more than {MAX_TABLE:,} bytes: split it")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise FedsimError(f"{path}: the file does not exist: check the path") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise FedsimError(
            f"{path}: the file cannot be read as text in gzip ({error}): replace it"
        ) from None


def tsv_rows(
    path: Path, columns: Sequence[str] | None = None, separator: str = "\t"
) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Return the columns of a table without any quoting, and its rows with their lines, one by one.

    Args:
        path: the file, which has a header unless `columns` are given.
        columns: names for the columns of a file without a header.
        separator: between cells.

    Raises `FedsimError` for a file that is not UTF-8, and for a row of more or fewer cells.
    """
    lines = lines_of(path)
    if columns is None:
        header = next(lines, (1, ""))[1]
        columns = header.split(separator)
        if separator not in header:
            raise FedsimError(f"{path}:1: the header {quoted(header)} has no tabs; name a TSV")
    return list(columns), _cells(path, list(columns), lines, separator)


def _cells(
    path: Path, columns: list[str], lines: Iterator[tuple[int, str]], separator: str
) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in lines:
        cells = line.split(separator)
        if len(cells) != len(columns):
            raise FedsimError(
                f"{path}:{number}: the row has {len(cells)} cells and there are {len(columns)}"
                f" columns; correct it"
            )
        yield number, dict(zip(columns, cells, strict=True))


def jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line and object of each line of a .jsonl file, also of a .jsonl.gz.

    Raises `FedsimError` for a line that is no JSON object.
    """
    for number, line in lines_of(path):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or str(error)
            raise FedsimError(
                f"{path}:{number}: the line is not JSON ({reason}); write one object per line"
            ) from None
        if not isinstance(value, dict):
            raise FedsimError(
                f"{path}:{number}: {quoted(value)} is not an object; write one object per line"
            )
        yield number, value


def word_pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line, first word and the rest of each line, as Kaldi's tables have them."""
    for number, line in lines_of(path):
        word, *rest = line.split(maxsplit=1)
        yield number, word, rest[0].strip() if rest else ""


def as_text(value: Any) -> str | None:
    """Return a value of JSON as a cell; None for null and for a list or an object."""
    if value is None or isinstance(value, list | dict):
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_seconds(value: Any, where: str, key: str) -> float:
    """Return a value as seconds; raises `FedsimError` for what is no time."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if isinstance(value, bool) or not 0 <= seconds <= MAX_TIME:
        raise FedsimError(f"{where}: {key} is {quoted(value)}; give a time in seconds")
    return seconds


def first_line(path: Path) -> str:
    """Return the beginning of a file up to its first line break, "" if it is no text.

    Reads at most 64 kB; for telling layouts apart.
    """
    try:
        require_regular(path)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(65_536).decode("utf-8-sig", "replace").split("\n", 1)[0]
    except (OSError, EOFError, zlib.error, FedsimError):
        return ""


def first_object(path: Path) -> dict[str, Any]:
    """Return the JSON object on the first line of a file, {} if there is none."""
    try:
        value = json.loads(first_line(path))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
