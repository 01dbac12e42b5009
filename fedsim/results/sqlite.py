"""What the project's SQLite files share: opening, transactions, and errors as sentences."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim.errors import FedsimError

BUSY_SECONDS = 5.0


def connect(path: Path) -> sqlite3.Connection:
    """Open a database, or make one; what is committed survives kill -9 and a power cut.

    Transactions are begun by `transaction` alone. Use it inside `explained`.
    """
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Write all that happens inside, or nothing of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def explained(path: Path, what: str) -> Iterator[None]:
    """Turn a database error into a `FedsimError` that says what to do; `what` names the file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise FedsimError(f"{path}: {_explain(error, what)}") from error


def _explain(error: sqlite3.DatabaseError, what: str) -> str:
    code = getattr(error, "sqlite_errorname", "")
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return (
            f"the {what} was locked by another process for {BUSY_SECONDS:g} s:"
            " end that process, or name another --out folder"
        )
    if code.startswith(("SQLITE_READONLY", "SQLITE_PERM")):
        return f"the {what} cannot be written: allow writing to the file and its folder"
    if code.startswith("SQLITE_FULL"):
        return "the disk is full: what was written is kept; free some space"
    if code.startswith("SQLITE_CANTOPEN"):
        return f"the {what} cannot be opened: check that its folder exists and may be written"
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return f"this is no {what}, or a damaged one: restore it, or name another --out folder"
    if code.startswith("SQLITE_IOERR"):
        return f"the disk cannot be read or written ({error}): check the disk and its free space"
    return f"the {what} cannot be used: {error}"
