"""What each client has spent of its privacy budget, in a file that outlives a run.

A device asks `spend` before it draws any noise. A spending is known by its request: asked again, by
a retry or a run that goes on, it costs nothing more, and `answer_once` gives the release that was
made the first time, for a second draw of noise would be a second release.

The sums of epsilon and of delta are kept: basic composition (Dwork and Roth 2014, "The Algorithmic
Foundations of Differential Privacy", Theorem 3.16). That is sound for releases of any kind one
after the other, also where a later one is chosen after the answers to the earlier (Rogers et al.
2016, "Privacy Odometers and Filters"). It is no tight account: many releases by one mechanism cost
less than their sum (`accounting.compose`).

SQLite, a transaction a spending: it is counted whole or not at all, also after kill -9, and by one
of several processes at a time. A device that is killed between spending and answering has released
nothing, and may still do so at what it spent.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path

from fedsim.errors import FedsimError

VERSION = 1
_BUSY_SECONDS = 30.0
# Whole numbers of these: a tenth can be spent three times out of three tenths. In SQLite's 64 bits
# they reach to an epsilon of 9e9 and a delta of 9.
_EPSILON_UNIT = Decimal("1e-9")
_DELTA_UNIT = Decimal("1e-18")


@dataclass(frozen=True)
class Limit:
    """The privacy budget of one client: what all its releases together may cost."""

    epsilon: float
    delta: float


UNLIMITED = Limit(1e9 - 1, 9.0)
"""A budget that nobody spends."""


def spend(
    path: str | Path, client: str, request: str, epsilon: float, delta: float, limit: Limit
) -> bool:
    """Count one release of a client, or return False where it would exceed the limit.

    A request that was counted before is granted and costs nothing more. Nothing is counted where it
    is refused. The file is made where there is none.

    Raises:
        FedsimError: if a number is negative or not finite, or the file cannot be read or written;
            then nothing may be released.
    """
    for name, value in (
        ("epsilon", epsilon),
        ("delta", delta),
        ("limit on epsilon", limit.epsilon),
        ("limit on delta", limit.delta),
    ):
        if not 0 <= value < 1e9:
            raise FedsimError(
                f"client {client!r}: the {name} of its privacy budget is {value}: give a number"
                " from 0 to 1e9"
            )
    cost = _units(epsilon, _EPSILON_UNIT, ROUND_CEILING), _units(delta, _DELTA_UNIT, ROUND_CEILING)
    most = (
        _units(limit.epsilon, _EPSILON_UNIT, ROUND_FLOOR),
        _units(limit.delta, _DELTA_UNIT, ROUND_FLOOR),
    )
    with _transaction(Path(path)) as db:
        if _known(db, client, request):
            return True
        before = _read(db, client)
        after = tuple(b + c for b, c in zip(before, cost, strict=True))
        if any(a > m for a, m in zip(after, most, strict=True)):
            return False
        db.execute("INSERT INTO spent VALUES (?, ?, ?, ?, NULL)", (client, request, *cost))
    return True


def answer_once(path: str | Path, client: str, request: str, make: Callable[[], bytes]) -> bytes:
    """Return the answer to a request that was granted: what `make` returns the first time.

    It is kept before it is returned, and so before anything leaves the device.

    Raises:
        FedsimError: if nothing was spent for the request, or the file cannot be read or written.
    """
    with _transaction(Path(path)) as db:
        known = _known(db, client, request)
        if known is None:
            raise FedsimError(f"client {client!r}: nothing was spent for {request!r}: ask first")
        (answer,) = known
        if answer is None:
            answer = make()
            db.execute(
                "UPDATE spent SET answer = ? WHERE client = ? AND request = ?",
                (answer, client, request),
            )
    return bytes(answer)


def is_answered(path: str | Path, client: str, request: str) -> bool:
    """Return whether `answer_once` has an answer, so that nothing need be computed for it."""
    with _transaction(Path(path)) as db:
        known = _known(db, client, request)
    return known is not None and known[0] is not None


def spent(path: str | Path, client: str) -> tuple[float, float]:
    """Return the epsilon and the delta that a client has spent; (0, 0) if it is not known.

    Raises `FedsimError` if the file cannot be read.
    """
    with _transaction(Path(path)) as db:
        epsilon, delta = _read(db, client)
    return float(epsilon * _EPSILON_UNIT), float(delta * _DELTA_UNIT)


def _units(value: float, unit: Decimal, rounding: str) -> int:
    # repr gives the shortest decimal that is this float: 0.1, not 0.1000000000000000055.
    return int((Decimal(repr(float(value))) / unit).to_integral_value(rounding))


def _read(db: sqlite3.Connection, client: str) -> tuple[int, int]:
    query = "SELECT COALESCE(SUM(epsilon), 0), COALESCE(SUM(delta), 0) FROM spent WHERE client = ?"
    epsilon, delta = db.execute(query, (client,)).fetchone()
    return epsilon, delta


def _known(db: sqlite3.Connection, client: str, request: str) -> tuple[bytes | None] | None:
    """Return the answer to a request that was granted, None in it where there is none yet."""
    query = "SELECT answer FROM spent WHERE client = ? AND request = ?"
    found: tuple[bytes | None] | None = db.execute(query, (client, request)).fetchone()
    return found


@contextmanager
def _transaction(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file, with the only right to write, until all is on the disk or nothing."""
    try:
        db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            # A rollback journal: unlike a write-ahead log it needs no memory shared by processes.
            # EXTRA keeps a commit also when the power fails right after it.
            db.execute("PRAGMA synchronous = EXTRA")
            db.execute("BEGIN IMMEDIATE")
            _set_up(db, path)
            yield db
            db.execute("COMMIT")
        finally:
            db.close()  # rolls back what was not committed
    except sqlite3.DatabaseError as error:
        raise FedsimError(
            f"{path}: the privacy budget cannot be read or written ({error}), so nothing is"
            " released: check the file, its folder and the room on its disk"
        ) from error


def _set_up(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version == 0 and tables == 0:
        db.execute(
            "CREATE TABLE spent (client TEXT NOT NULL, request TEXT NOT NULL,"
            " epsilon INTEGER NOT NULL, delta INTEGER NOT NULL, answer BLOB,"
            " PRIMARY KEY (client, request)) WITHOUT ROWID"
        )
        db.execute(f"PRAGMA user_version = {VERSION}")
    elif version != VERSION:
        raise FedsimError(
            f"{path}: this is no privacy budget of this version of fedsim (it says version"
            f" {version}, {VERSION} is read): name another file, or a new one"
        )
