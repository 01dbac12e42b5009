"""SQLite files: opening them, transactions, and errors that say what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim.errors import FedsimError

BUSY_S = 5.0
"""Seconds to wait for a lock of another process."""


def connect(path: Path, busy_s: float = BUSY_S) -> sqlite3.Connection:
    """Open or create a database; what is committed survives kill -9 and a power cut.

    Call it inside `explained`, and begin transactions with `transaction` only.
    """
    db = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Commit everything inside, or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def explained(path: Path, kind: str, busy_s: float = BUSY_S) -> Iterator[None]:
    """Turn database errors into a `FedsimError` that says what to do.

    Args:
        path: the file.
        kind: what the file is, such as `ledger`.
        busy_s: the seconds that `connect` was given.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise FedsimError(f"{path}: {_explain(error, kind, busy_s)}") from error


def _explain(error: sqlite3.DatabaseError, kind: str, busy_s: float) -> str:
    code = getattr(error, "sqlite_errorname", "")
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return (
            f"the {kind} was locked by another process for {busy_s:g} s:"
            " end that process, or name another --out folder"
        )
    if code.startswith(("SQLITE_READONLY", "SQLITE_PERM")):
        return f"the {kind} cannot be written: allow writing to the file and its folder"
    if code.startswith("SQLITE_FULL"):
        return "the disk is full: free some space; what was written is kept"
    if code.startswith("SQLITE_CANTOPEN"):
        return f"the {kind} cannot be opened: check that its folder exists and may be written"
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return f"this is not a {kind}, or it is damaged: restore it, or name another --out folder"
    if code.startswith("SQLITE_IOERR"):
        return f"the disk cannot be read or written ({error}): check the disk and its free space"
    return f"the {kind} cannot be used ({error}): restore it, or name another --out folder"
