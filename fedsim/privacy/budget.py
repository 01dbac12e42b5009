"""What each client has spent of its privacy budget, in a file that outlives a run.

A device calls `spend` before it draws any noise. Each spending belongs to a request. The same
request again, from a retry or a continued run, costs nothing more, and `answer_once` returns the
release that was made the first time: a second draw of noise would be a second release.

Epsilon and delta are summed: basic composition (Dwork and Roth 2014, "The Algorithmic Foundations
of Differential Privacy", Theorem 3.16). That is sound for any sequence of releases, also where a
later one is chosen after the answers to earlier ones (Rogers et al. 2016, "Privacy Odometers and
Filters"). It is not tight: many releases by one mechanism cost less than their sum
(`accounting.compose`).

The file is SQLite with one transaction per spending, so a spending is counted completely or not at
all, also after kill -9, and by one process at a time. A device that is killed between spending and
answering has released nothing; it can still do so without spending again.
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
LOCK_TIMEOUT_S = 30.0
"""How long to wait for another process that writes."""
# Sums are exact in whole numbers of these: three times 0.1 is 0.3. In SQLite's 64 bits they reach
# an epsilon of 9e9 and a delta of 9.
_EPSILON_UNIT = Decimal("1e-9")
_DELTA_UNIT = Decimal("1e-18")


@dataclass(frozen=True)
class Limit:
    """The privacy budget of one client: the maximum that all its releases may cost together."""

    epsilon: float
    delta: float


UNLIMITED = Limit(1e9 - 1, 9.0)
"""A budget that no client exhausts."""


def spend(
    path: str | Path,
    client: str,
    request: str,
    epsilon: float,
    delta: float,
    limit: Limit,
    *,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
) -> bool:
    """Count one release of a client and return True, or return False if it would exceed the limit.

    A request that was counted before is granted and costs nothing more. A refused one costs
    nothing. The file is created if it does not exist.

    Raises:
        FedsimError: if a number is negative or not finite, or if the file cannot be read or
            written, for instance because it is locked for longer than `lock_timeout_s`; then
            nothing may be released.
    """
    for name, value in (
        ("epsilon", epsilon),
        ("delta", delta),
        ("limit on epsilon", limit.epsilon),
        ("limit on delta", limit.delta),
    ):
        if not 0 <= value < 1e9:
            raise FedsimError(
                f"client {client!r}: the {name} of its privacy budget is {value}; give a number"
                " from 0 to 1e9"
            )
    cost = _units(epsilon, _EPSILON_UNIT, ROUND_CEILING), _units(delta, _DELTA_UNIT, ROUND_CEILING)
    maximum = (
        _units(limit.epsilon, _EPSILON_UNIT, ROUND_FLOOR),
        _units(limit.delta, _DELTA_UNIT, ROUND_FLOOR),
    )
    with _transaction(Path(path), lock_timeout_s) as db:
        if _known(db, client, request):
            return True
        before = _read(db, client)
        after = tuple(b + c for b, c in zip(before, cost, strict=True))
        if any(a > m for a, m in zip(after, maximum, strict=True)):
            return False
        db.execute("INSERT INTO spent VALUES (?, ?, ?, ?, NULL)", (client, request, *cost))
    return True


def answer_once(path: str | Path, client: str, request: str, make: Callable[[], bytes]) -> bytes:
    """Return the answer to a granted request: what `make` returned the first time.

    It is stored before it is returned, and so before anything leaves the device.

    Raises:
        FedsimError: if nothing was spent for the request, or the file cannot be read or written.
    """
    with _transaction(Path(path)) as db:
        known = _known(db, client, request)
        if known is None:
            raise FedsimError(
                f"client {client!r}: nothing was spent for {request!r}; call spend first"
            )
        (answer,) = known
        if answer is None:
            answer = make()
            db.execute(
                "UPDATE spent SET answer = ? WHERE client = ? AND request = ?",
                (answer, client, request),
            )
    return bytes(answer)


def is_answered(path: str | Path, client: str, request: str) -> bool:
    """Return whether the answer to a request is stored, so that it need not be computed."""
    with _transaction(Path(path)) as db:
        known = _known(db, client, request)
    return known is not None and known[0] is not None


def spent(path: str | Path, client: str) -> tuple[float, float]:
    """Return the epsilon and the delta that a client has spent; (0, 0) for an unknown client.

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
    """Return (answer,) of a granted request, (None,) before it is answered; None if not granted."""
    query = "SELECT answer FROM spent WHERE client = ? AND request = ?"
    found: tuple[bytes | None] | None = db.execute(query, (client, request)).fetchone()
    return found


@contextmanager
def _transaction(
    path: Path, lock_timeout_s: float = LOCK_TIMEOUT_S
) -> Iterator[sqlite3.Connection]:
    """Open the file for exclusive writing; on leaving, commit, or roll back after an error."""
    try:
        db = sqlite3.connect(path, timeout=lock_timeout_s, isolation_level=None)
        try:
            # A rollback journal, the default, needs no shared memory, unlike a write-ahead log.
            # With EXTRA a commit also survives a power failure right after it.
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
            " released; check the file, its folder and the space on its disk"
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
            f"{path}: not a privacy budget of this version of fedsim (version {version} instead of"
            f" {VERSION}); name another file, or a new one"
        )
