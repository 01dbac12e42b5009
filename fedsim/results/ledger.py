"""The ledger of a run: an SQLite file that holds all that finished, whatever happens to the run.

One transaction a client: a client is in the ledger whole or not at all, also after kill -9 or a
power cut (write-ahead log, synchronous FULL).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from fedsim.errors import FedsimError
from fedsim.results.rows import COLUMNS, Plan, Row, Sensed, sort_rows

VERSION = 2
_BUSY_SECONDS = 5.0
_SQL_KINDS = {str: "TEXT", int: "INTEGER", float: "REAL"}
_ROW_NAMES = ", ".join(c.name for c in COLUMNS)
_ROW_COLUMNS = ", ".join(
    f"{c.name} {_SQL_KINDS[c.kind]}{'' if c.optional else ' NOT NULL'}" for c in COLUMNS
)
_SCHEMA = (
    "CREATE TABLE clients (client TEXT PRIMARY KEY) WITHOUT ROWID",
    f"CREATE TABLE results ({_ROW_COLUMNS}, PRIMARY KEY (client, method, tuned_on)) WITHOUT ROWID",
    "CREATE TABLE plans (client TEXT NOT NULL, method TEXT NOT NULL, tuned_on TEXT NOT NULL,"
    " bits BLOB NOT NULL, wrong BLOB NOT NULL, of BLOB NOT NULL,"
    " PRIMARY KEY (client, method, tuned_on)) WITHOUT ROWID",
    "CREATE TABLE sensed (client TEXT PRIMARY KEY, sensitivity BLOB NOT NULL,"
    " quantiles BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE failures (client TEXT NOT NULL, stage TEXT NOT NULL, reason TEXT NOT NULL,"
    " PRIMARY KEY (client, stage, reason)) WITHOUT ROWID",
    "CREATE TABLE releases (id INTEGER PRIMARY KEY, client TEXT NOT NULL, stage TEXT NOT NULL,"
    " direction TEXT NOT NULL CHECK (direction IN ('up', 'down')), field TEXT NOT NULL,"
    " bytes INTEGER NOT NULL CHECK (bytes >= 0), epsilon REAL)",
    f"PRAGMA user_version = {VERSION}",
)


@dataclass(frozen=True)
class Failure:
    """A client that could not go on: at which stage (sense, plan, personalize, evaluate) and
    why."""

    client: str
    stage: str
    reason: str
    """One sentence."""


@dataclass(frozen=True)
class Release:
    """One thing that left a device (`up`) or came to it (`down`)."""

    client: str
    stage: str
    direction: Literal["up", "down"]
    field: str
    bytes: int
    epsilon: float | None = None
    """What it cost in differential privacy; None if no noise was added."""


_RELEASE_NAMES = ", ".join(field.name for field in fields(Release))


class Ledger:
    """An open ledger. Its methods may be called from any thread; close it, or use `with`."""

    def __init__(self, path: str | Path) -> None:
        """Open the ledger at `path`, or make it there.

        Raises:
            FedsimError: if the file cannot be opened or written, or is no ledger of this version.
        """
        self.path = Path(path)
        self._lock = threading.RLock()
        with self._explained():
            self._db = sqlite3.connect(
                self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            with self._explained():
                self._set_up()
        except FedsimError:
            self._db.close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was written stays."""
        self._db.close()

    def finish_client(
        self,
        client: str,
        rows: Sequence[Row],
        plans: Sequence[Plan] = (),
        sensed: Sensed | None = None,
    ) -> None:
        """Write all results of a client in one transaction, in place of any it had.

        Raises:
            ValueError: if a row is of another client, or two rows have one method and `tuned_on`.
            FedsimError: if the file cannot be written; then nothing of the client is.
        """
        if any(c != client for c in [*(r.client for r in rows), *(p.client for p in plans)]):
            raise ValueError(f"rows of client {client!r} include another client's")
        if len({(row.method, row.tuned_on) for row in rows}) < len(rows):
            raise ValueError(f"client {client!r} has two rows of one method and tuned_on")
        places = ", ".join("?" for _ in COLUMNS)
        with self._transaction() as db:
            db.execute("DELETE FROM results WHERE client = ?", (client,))
            db.executemany(
                f"INSERT INTO results ({_ROW_NAMES}) VALUES ({places})",
                [astuple(row) for row in rows],
            )
            db.execute("DELETE FROM plans WHERE client = ?", (client,))
            db.executemany(
                "INSERT INTO plans VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (p.client, p.method, p.tuned_on, bytes(p.bits), _pack(p.wrong), _pack(p.of))
                    for p in plans
                ],
            )
            if sensed is not None:
                values = [
                    np.asarray(v, "<f8").tobytes() for v in (sensed.sensitivity, sensed.quantiles)
                ]
                db.execute("INSERT OR REPLACE INTO sensed VALUES (?, ?, ?)", (client, *values))
            db.execute("INSERT OR REPLACE INTO clients (client) VALUES (?)", (client,))

    def fail_client(self, client: str, stage: str, reason: str) -> None:
        """Write that a client failed at a stage, and why; what it finished before is kept."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO failures (client, stage, reason) VALUES (?, ?, ?)",
                (client, stage, reason),
            )

    def release(
        self,
        client: str,
        stage: str,
        direction: Literal["up", "down"],
        field: str,
        bytes: int,
        epsilon: float | None = None,
    ) -> None:
        """Write one thing that left a device or came to it."""
        self.releases([Release(client, stage, direction, field, bytes, epsilon)])

    def releases(self, releases: Sequence[Release]) -> None:
        """Write several releases in one transaction."""
        places = ", ".join("?" for _ in fields(Release))
        with self._transaction() as db:
            db.executemany(
                f"INSERT INTO releases ({_RELEASE_NAMES}) VALUES ({places})",
                [astuple(release) for release in releases],
            )

    def rows(self) -> list[Row]:
        """Return every result, sorted by client, method and `tuned_on`."""
        return sort_rows(
            [Row(*values) for values in self._read(f"SELECT {_ROW_NAMES} FROM results")]
        )

    def plans(self) -> Iterator[Plan]:
        """Yield every plan, sorted by client, method and `tuned_on`."""
        query = "SELECT client, method, tuned_on, bits, wrong, of FROM plans ORDER BY 1, 2, 3"
        for client, method, tuned_on, bits, wrong, of in self._read(query):
            yield Plan(client, method, tuned_on, tuple(bits), _unpack(wrong), _unpack(of))

    def sensed(self) -> Iterator[Sensed]:
        """Yield what each client sensed, sorted by client."""
        query = "SELECT client, sensitivity, quantiles FROM sensed ORDER BY client"
        for client, *values in self._read(query):
            yield Sensed(client, *(tuple(np.frombuffer(v, "<f8").tolist()) for v in values))

    def failures(self) -> list[Failure]:
        """Return every failure, sorted by client and stage."""
        found = self._read("SELECT client, stage, reason FROM failures")
        return [Failure(*values) for values in sorted(found)]

    def all_releases(self) -> list[Release]:
        """Return every release in the order they were written."""
        found = self._read(f"SELECT {_RELEASE_NAMES} FROM releases ORDER BY id")
        return [Release(*values) for values in found]

    def finished(self) -> set[str]:
        """Return the keys of the clients that finished."""
        return {client for (client,) in self._read("SELECT client FROM clients")}

    def _set_up(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        with self._transaction() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version == 0 and tables == 0:
                for statement in _SCHEMA:
                    db.execute(statement)
            elif version != VERSION:
                raise FedsimError(
                    f"{self.path}: this is no ledger of this version of fedsim (it says version"
                    f" {version}, {VERSION} is read): start a run in another folder"
                )

    def _read(self, query: str) -> list[tuple]:
        with self._lock, self._explained():
            return self._db.execute(query).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise FedsimError(f"{self.path}: {_explain(error)}") from error


def _pack(counts: Sequence[int]) -> bytes:
    return np.asarray(counts, "<i4").tobytes()


def _unpack(data: bytes) -> tuple[int, ...]:
    return tuple(np.frombuffer(data, "<i4").tolist())


def _explain(error: sqlite3.DatabaseError) -> str:
    code = getattr(error, "sqlite_errorname", "")
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return (
            f"the ledger was locked by another process for {_BUSY_SECONDS:g} s:"
            " end that process, or name another --out folder"
        )
    if code.startswith(("SQLITE_READONLY", "SQLITE_PERM")):
        return "the ledger cannot be written: allow writing to the file and its folder"
    if code.startswith("SQLITE_FULL"):
        return "the disk is full: what was written is kept; free some space"
    if code.startswith("SQLITE_CANTOPEN"):
        return "the ledger cannot be opened: check that its folder exists and may be written"
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return "this is no ledger, or a damaged one: restore it, or name another --out folder"
    if code.startswith("SQLITE_IOERR"):
        return f"the disk cannot be read or written ({error}): check the disk and its free space"
    return f"the ledger cannot be used: {error}"
