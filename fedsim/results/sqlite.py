"""SQLite files: opening them, transactions, and errors that say what to do."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

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
def connected_to_read(path: Path, busy_s: float = BUSY_S) -> Iterator[sqlite3.Connection]:
    """Open a database that is only read, also on a disk that cannot be written.

    Nothing is created. Where another process has not ended, or was killed, its write-ahead log is
    read too; if that cannot be done in place, both files are copied to a temporary folder. Call it
    inside `explained`.

    Raises:
        OSError: if there is no such file.
        sqlite3.OperationalError: if it cannot be opened.
    """
    path.stat()  # SQLite would take one that is missing for an empty one
    log, shared = (path.with_name(path.name + end) for end in ("-wal", "-shm"))
    with ExitStack() as stack:
        db = None
        if not log.is_file() or log.stat().st_size == 0:
            # Nobody writes. Without `immutable` SQLite would make files beside it for locking.
            db = stack.enter_context(_opened(path, "immutable=1", busy_s))
        elif shared.is_file():
            db = stack.enter_context(_opened(path, "mode=ro", busy_s))
            try:
                db.execute("SELECT count(*) FROM sqlite_master")
            except sqlite3.OperationalError:  # a disk that is read only
                db = None
        if db is None:
            copy = Path(stack.enter_context(TemporaryDirectory(prefix="fedsim-"))) / path.name
            for file in (path, log):
                shutil.copyfile(file, copy.with_name(file.name))
            db = stack.enter_context(_opened(copy, "mode=rw", busy_s))
        yield db


@contextmanager
def _opened(path: Path, how: str, busy_s: float) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?{how}",
        uri=True,
        timeout=busy_s,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        yield db
    finally:
        db.close()


def check_structure(db: sqlite3.Connection) -> None:
    """Raise `sqlite3.DatabaseError` if pages or indexes of a database do not fit together."""
    (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(" ".join(str(found).split()))


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


class ContentError(FedsimError):
    """What was to be written is wrong, not the file: the caller knows whose it is."""


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
    except (sqlite3.IntegrityError, sqlite3.DataError) as error:
        raise ContentError(f"{path}: {_explain(error, kind, busy_s)}") from error
    except sqlite3.Error as error:
        raise FedsimError(f"{path}: {_explain(error, kind, busy_s)}") from error
    except UnicodeDecodeError as error:  # of a damaged text that SQLite's own message quotes
        raise damaged(path, kind) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FedsimError(
            f"{path}: the {kind} cannot be read ({reason}): restore it, or allow reading"
        ) from error


def damaged(path: Path, kind: str) -> FedsimError:
    """Return what to raise for a database with content that was never written to it."""
    return FedsimError(
        f"{path}: this is not a {kind}, or it is damaged: restore it, or name another --out folder"
    )


def _explain(error: sqlite3.Error, kind: str, busy_s: float) -> str:
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
