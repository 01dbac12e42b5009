"""The tables of a ledger, with a checksum per row, and how records are written to them."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.results.records import Log
from fedsim.results.rows import COLUMNS

VERSION = 11
ASKED_GROUP = "cohort"
"""The stage under which `kept` marks the clients whose group was asked for its sum."""
_SQL_KINDS = {str: "TEXT", int: "INTEGER", float: "REAL", bytes: "BLOB"}
_CHECK_BYTES = 8


@dataclass(frozen=True)
class Column:
    """A column: its Python type, what SQL says of it beside that, and what it holds."""

    name: str
    kind: type
    optional: bool = False
    check: str = ""
    what: str = ""


@dataclass(frozen=True)
class Table:
    """A table, and what a row of it is.

    Without a key of columns, rows are numbered from 1 in the order in which they are written.
    """

    name: str
    what: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()

    @property
    def names(self) -> str:
        """The columns, as SQL lists them."""
        return ", ".join(column.name for column in self.columns)

    @property
    def sql_kinds(self) -> tuple[str, ...]:
        """The types of the columns, as SQL names them."""
        return tuple(_SQL_KINDS[column.kind] for column in self.columns)

    @property
    def sql(self) -> str:
        """The statement that creates the table."""
        columns = [
            " ".join(
                word
                for word in (
                    *(c.name, kind),
                    *("" if c.optional else "NOT NULL", f"CHECK ({c.check})" if c.check else ""),
                )
                if word
            )
            for c, kind in zip(self.columns, self.sql_kinds, strict=True)
        ]
        if not self.key:
            columns.insert(0, "id INTEGER PRIMARY KEY")
        columns.append("checksum BLOB NOT NULL")
        keyed = f", PRIMARY KEY ({', '.join(self.key)})" if self.key else ""
        return f"CREATE TABLE {self.name} ({', '.join(columns)}{keyed})" + (
            " WITHOUT ROWID" if self.key else ""
        )


def _texts(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, str) for name in names)


_MODEL = ("client", "method", "tuned_on")
_DEPTHS = Column("bits", bytes, what="bit depth of each layer, uint8")
_LANGUAGE = Column("language", str, what="of the clips, where model files differ by it, else empty")
TABLES = {
    table.name: table
    for table in (
        Table(
            "facts",
            "What binds the run: its settings as JSON, and the hashes of its files.",
            _texts("kind", "name", "value"),
            ("kind", "name"),
        ),
        Table("clients", "A client that has finished.", _texts("client"), ("client",)),
        Table(
            "results",
            "A model, as one client tested it; results.parquet has the same rows.",
            tuple(Column(c.name, c.kind, c.optional) for c in COLUMNS),
            _MODEL,
        ),
        Table(
            "plans",
            "The plan of a row of `results`, and with `study: true` the counts of each test clip.",
            (
                *_texts(*_MODEL),
                _DEPTHS,
                Column("wrong", bytes, what="errors of each clip, int32"),
                Column("of", bytes, what="words of each clip, or characters, int32"),
            ),
            _MODEL,
        ),
        Table(
            "sensed",
            "The layer profile that a client sent.",
            (
                *_texts("client"),
                Column("sensitivity", bytes, what="layer by layer, float64"),
                Column("quantiles", bytes, what="of each layer's output, float64; with a study"),
                Column("depths", bytes, what="bit depths of the columns of a table, uint8"),
            ),
            ("client",),
        ),
        Table(
            "kept",
            "An answer of a client that has not finished, for `--resume`.",
            (*_texts("client", "stage"), Column("reply", str, what="as JSON")),
            ("client", "stage"),
        ),
        Table(
            "failures",
            "A client that did not finish, and why.",
            (
                *_texts("client", "stage", "reason"),
                Column("outcome", str, what="failed, dropped, quarantined or declined"),
            ),
            ("client", "stage", "reason"),
        ),
        Table(
            "events",
            "What went wrong and was handled: a lost message, a refused answer.",
            (
                *_texts("client", "stage"),
                Column("attempt", int, what="1 for the first message of the stage"),
                *_texts("event", "detail"),
            ),
        ),
        Table(
            "releases",
            "A field of a message that left a device or reached it.",
            (
                *_texts("client", "stage"),
                Column("direction", str, check="direction IN ('up', 'down')"),
                *_texts("field"),
                Column("bytes", int, check="bytes >= 0"),
                Column("epsilon", float, optional=True, what="its cost where noise was added"),
            ),
        ),
        Table(
            "workloads",
            "The audio of a stage, for the virtual clock: only with a fleet.",
            (
                *_texts("client", "stage"),
                Column("clips", int),
                Column("seconds", float),
                Column("tokens", float, what="of the model's own transcripts"),
            ),
            ("client", "stage"),
        ),
        Table(
            "payloads",
            "What the server saw of a client's layer profile, which `fedsim audit` attacks.",
            (
                Column("client", str),
                Column("round", int, what="number of the release, from 1"),
                Column("release", str),
                Column("payload", bytes, what="as it was released"),
            ),
            ("client", "round"),
        ),
        Table(
            "planned",
            "A plan that was delivered, for the virtual clock: only with a fleet.",
            (*_texts("client", "stage", "method"), _DEPTHS, _LANGUAGE),
            ("client", "method"),
        ),
    )
}
SCHEMA = (
    *(table.sql for table in TABLES.values()),
    "CREATE INDEX events_of ON events (client)",
    "CREATE INDEX releases_of ON releases (client)",
    f"PRAGMA user_version = {VERSION}",
)


def insert(
    db: sqlite3.Connection,
    table: str,
    records: Iterable[Sequence[Any]],
    how: str = "INSERT OR REPLACE",
) -> None:
    """Write records, the values of a table's columns in order, inside the caller's transaction."""
    schema = TABLES[table]
    places = ", ".join("?" for _ in (*schema.columns, *("id",) * (not schema.key), "checksum"))
    rows = (_stored(schema, values) for values in records)
    if not schema.key:
        (last,) = db.execute(f"SELECT COALESCE(MAX(id), 0) FROM {table}").fetchone()
        rows = ((number, *row) for number, row in enumerate(rows, start=last + 1))
    db.executemany(
        f"{how} INTO {table} VALUES ({places})", ((*row, checksum(table, row)) for row in rows)
    )


def _stored(table: Table, values: Sequence[Any]) -> tuple[Any, ...]:
    """Return values as SQLite gives them back: NaN as None, -0.0 as 0.0, 1 in a column of floats
    as 1.0."""
    return tuple(
        (None if value != value else float(value) + 0.0)
        if column.kind is float and isinstance(value, int | float)
        else value
        for column, value in zip(table.columns, values, strict=True)
    )


def checksum(table: str, row: Sequence[Any]) -> bytes:
    """Return the checksum of a row as it is stored, with its id if it has one, else its columns.

    It finds accidents, such as a flipped bit or an edit by hand, not who computes it anew.
    """
    text = repr((table, *row)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=_CHECK_BYTES).digest()


def write_log(db: sqlite3.Connection, log: Log | None) -> None:
    """Write a log, inside the caller's transaction."""
    if log is None:
        return
    for table, records in (
        ("releases", log.releases),
        ("events", log.events),
        ("workloads", log.workloads),
    ):
        if records:
            insert(db, table, [tuple(vars(record).values()) for record in records])
    insert(
        db,
        "planned",
        [
            (plan.client, "personalize", plan.method, bytes(plan.bits), plan.language)
            for plan in log.planned
        ],
    )


def pack_counts(counts: Sequence[int]) -> bytes:
    """Return counts as bytes, int32 little-endian."""
    return np.asarray(counts, "<i4").tobytes()


def unpack_counts(data: bytes) -> tuple[int, ...]:
    """Return the counts that `pack_counts` packed."""
    return tuple(np.frombuffer(data, "<i4").tolist())


def unpack_floats(data: bytes) -> tuple[float, ...]:
    """Return the numbers in bytes, float64 little-endian."""
    return tuple(np.frombuffer(data, "<f8").tolist())
