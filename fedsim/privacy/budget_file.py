"""The SQLite file of privacy budgets, and the marker beside it: what is spent stays spent.

Each row carries a checksum (HMAC-SHA256) under a key that was drawn with the file; each client has
a running total that must agree with its rows, so that one that is gone or changed is noticed. The
marker, `<file>.mark`, holds the key and how many spendings the file has had at least. A file that
is gone, empty or older than its marker is refused.

The key lies on the same disk, because a device has no other. So this protects from accidents: bits
that flip, a disk that loses a file, an old copy that is restored, an edit by hand. It does not
protect from the owner of the device, who can read the key and remove both files; no file can.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fedsim.base.files import atomic_write
from fedsim.errors import FedsimError

VERSION = 2
LOCK_TIMEOUT_S = 30.0
"""How long to wait for another process that writes."""
_KEY_BYTES = 32
_CHECK_BYTES = 16
_MAX_MARK_BYTES = 1024
_SCHEMA = (
    "CREATE TABLE spent (client TEXT NOT NULL, request TEXT NOT NULL,"
    " epsilon INTEGER NOT NULL CHECK (epsilon >= 0), delta INTEGER NOT NULL CHECK (delta >= 0),"
    " answer BLOB, hmac BLOB NOT NULL, PRIMARY KEY (client, request)) WITHOUT ROWID",
    "CREATE TABLE totals (client TEXT PRIMARY KEY, requests INTEGER NOT NULL,"
    " epsilon INTEGER NOT NULL, delta INTEGER NOT NULL, hmac BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE counter (id INTEGER PRIMARY KEY CHECK (id = 0), spendings INTEGER NOT NULL,"
    " hmac BLOB NOT NULL)",
    f"PRAGMA user_version = {VERSION}",
)


@dataclass(frozen=True)
class Spending:
    """What one request cost, in whole units, and its answer; None before it is answered."""

    epsilon: int
    delta: int
    answer: bytes | None = None


@dataclass(frozen=True)
class Mark:
    """What the marker beside a file holds."""

    key: bytes
    spendings: int
    """The file has had at least so many."""


class Account:
    """The spendings of one client, inside a transaction; made by `open_account`."""

    def __init__(self, db: sqlite3.Connection, path: Path, client: str, mark: Mark) -> None:
        self._db, self._path, self._client, self._mark = db, path, client, mark
        self.count = self._read_counter()
        """Spendings of all clients."""
        self.spendings = self._read_spendings()
        """Request -> what it cost; every checksum agrees, and so does the running total."""

    @property
    def total(self) -> tuple[int, int]:
        """The epsilon and the delta spent, in whole units."""
        spent = self.spendings.values()
        return sum(s.epsilon for s in spent), sum(s.delta for s in spent)

    def add(self, request: str, epsilon: int, delta: int) -> None:
        """Count a spending."""
        self._write(request, Spending(epsilon, delta))
        self.count += 1
        values = (self._client, len(self.spendings), *self.total)
        self._insert("totals", values)
        self._insert("counter", (0, self.count))

    def answer(self, request: str, answer: bytes) -> None:
        """Store the answer to a request that was counted."""
        self._write(request, replace(self.spendings[request], answer=answer))

    def _write(self, request: str, spending: Spending) -> None:
        self.spendings[request] = spending
        values = (self._client, request, spending.epsilon, spending.delta, spending.answer)
        self._insert("spent", values)

    def _insert(self, table: str, values: Sequence[str | int | bytes | None]) -> None:
        places = ", ".join("?" for _ in (*values, None))
        check = _checksum(self._mark.key, table, values)
        self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({places})", (*values, check))

    def _read(self, table: str, where: str, value: str | int) -> list[tuple]:
        """Return the rows of a table without their checksums, which agree."""
        rows = self._db.execute(f"SELECT * FROM {table} WHERE {where} = ?", (value,)).fetchall()
        for row in rows:
            *values, check = row
            if not isinstance(check, bytes) or not hmac.compare_digest(
                check, _checksum(self._mark.key, table, values)
            ):
                raise damaged(self._path, f"a row of {self._client!r} does not fit its checksum")
        return [row[:-1] for row in rows]

    def _read_counter(self) -> int:
        rows = self._read("counter", "id", 0)
        count: int = rows[0][1] if rows else 0
        if count < self._mark.spendings:
            raise damaged(
                self._path,
                f"it counts {count} spendings, and the marker beside it {self._mark.spendings}:"
                " an older copy, or emptied",
            )
        return count

    def _read_spendings(self) -> dict[str, Spending]:
        found = {r: Spending(e, d, a) for _, r, e, d, a in self._read("spent", *self._where)}
        totals = self._read("totals", *self._where) or [(self._client, 0, 0, 0)]
        sums = sum(s.epsilon for s in found.values()), sum(s.delta for s in found.values())
        if totals[0][1:] != (len(found), *sums) or any(
            s.epsilon < 0 or s.delta < 0 for s in found.values()
        ):
            raise damaged(
                self._path, f"the spendings of client {self._client!r} do not add up to its total"
            )
        return found

    @property
    def _where(self) -> tuple[str, str]:
        return "client", self._client


@contextmanager
def open_account(
    path: Path, client: str, lock_timeout_s: float = LOCK_TIMEOUT_S
) -> Iterator[Account]:
    """Open the file for exclusive writing; on leaving, commit, or roll back after an error.

    Raises:
        FedsimError: if it is damaged, emptied or gone, or cannot be read or written.
    """
    try:
        # Before SQLite creates the file. The marker follows a spending, so it never comes first.
        mark = _read_mark(path)
        if mark is not None and mark.spendings and not path.is_file():
            raise damaged(path, "the file is gone, and the marker beside it tells of spendings")
        db = sqlite3.connect(path, timeout=lock_timeout_s, isolation_level=None)
        try:
            # A rollback journal, the default, needs no shared memory, unlike a write-ahead log.
            # With EXTRA a commit also survives a power failure right after it.
            db.execute("PRAGMA synchronous = EXTRA")
            db.execute("BEGIN IMMEDIATE")
            mark = _set_up(db, path)
            account = Account(db, path, client, mark)
            yield account
            db.execute("COMMIT")
        finally:
            db.close()  # rolls back what was not committed
        # After the commit: one that comes first would, after a kill in between, tell of a spending
        # that there was not. Of two processes the later may write the lower count, which is true.
        if account.count > mark.spendings:
            _write_mark(path, replace(mark, spendings=account.count))
    except (sqlite3.Error, UnicodeDecodeError) as error:  # also of SQLite's own damaged message
        raise _unusable(path, error) from error


def damaged(path: Path, what: str) -> FedsimError:
    """Return what to raise for a file that must not grant anything."""
    return FedsimError(
        f"{path}: the privacy budget is damaged ({what}), so nothing is released; restore the file"
        " from a copy that is not older"
    )


def _unusable(path: Path, error: Exception) -> FedsimError:
    return FedsimError(
        f"{path}: the privacy budget cannot be read or written ({error}), so nothing is released;"
        " check the file, its folder and the space on its disk"
    )


def mark_of(path: Path) -> Path:
    """Return the path of the marker beside a file."""
    return path.with_name(path.name + ".mark")


def _set_up(db: sqlite3.Connection, path: Path) -> Mark:
    """Create the tables and the key in a new file; return the marker."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    mark = _read_mark(path)  # again: another process may have drawn the key meanwhile
    if version == 0 and tables == 0:
        if mark is not None and mark.spendings:
            raise damaged(path, "it is empty, and the marker beside it tells of spendings")
        for statement in _SCHEMA:
            db.execute(statement)
        if mark is None:
            mark = Mark(secrets.token_bytes(_KEY_BYTES), 0)
            _write_mark(path, mark)
    elif version != VERSION:
        raise FedsimError(
            f"{path}: not a privacy budget of this version of fedsim (version {version} instead of"
            f" {VERSION}); go on with that version, or name the right file"
        )
    if mark is None:
        raise damaged(path, f"{mark_of(path).name} beside it, which holds its key, is gone")
    return mark


def _checksum(key: bytes, table: str, values: Sequence[object]) -> bytes:
    text = repr((table, *values)).encode("utf-8", "surrogatepass")
    return hmac.digest(key, text, hashlib.sha256)[:_CHECK_BYTES]


def _read_mark(path: Path) -> Mark | None:
    """Return the marker beside a file, None if there is none."""
    try:
        with mark_of(path).open("rb") as file:
            text = file.read(_MAX_MARK_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        fields = json.loads(text)
        key, spendings, check = bytes.fromhex(fields["key"]), fields["spendings"], fields["hmac"]
        if type(spendings) is not int or len(key) != _KEY_BYTES:
            raise ValueError
        if check != _checksum(key, "mark", (spendings,)).hex():
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise damaged(path, f"{mark_of(path).name} beside it is not what was written") from None
    return Mark(key, spendings)


def _write_mark(path: Path, mark: Mark) -> None:
    check = _checksum(mark.key, "mark", (mark.spendings,)).hex()
    fields = {"key": mark.key.hex(), "spendings": mark.spendings, "hmac": check}
    try:
        with atomic_write(mark_of(path), mode=0o600) as file:
            file.write(json.dumps(fields).encode() + b"\n")
    except OSError as error:
        raise _unusable(path, error) from error
