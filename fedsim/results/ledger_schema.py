"""The tables of a ledger, and how records are written to them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from fedsim.results.records import Event, Log, Release
from fedsim.results.rows import COLUMNS

VERSION = 7
ASKED_GROUP = "cohort"
"""The stage under which `kept` marks the clients whose group was asked for its sum."""
_SQL_KINDS = {str: "TEXT", int: "INTEGER", float: "REAL"}
ROW_NAMES = ", ".join(c.name for c in COLUMNS)
_ROW_COLUMNS = ", ".join(
    f"{c.name} {_SQL_KINDS[c.kind]}{'' if c.optional else ' NOT NULL'}" for c in COLUMNS
)
SCHEMA = (
    "CREATE TABLE clients (client TEXT PRIMARY KEY) WITHOUT ROWID",
    f"CREATE TABLE results ({_ROW_COLUMNS}, PRIMARY KEY (client, method, tuned_on)) WITHOUT ROWID",
    "CREATE TABLE plans (client TEXT NOT NULL, method TEXT NOT NULL, tuned_on TEXT NOT NULL,"
    " bits BLOB NOT NULL, wrong BLOB NOT NULL, of BLOB NOT NULL,"
    " PRIMARY KEY (client, method, tuned_on)) WITHOUT ROWID",
    "CREATE TABLE sensed (client TEXT PRIMARY KEY, sensitivity BLOB NOT NULL,"
    " quantiles BLOB NOT NULL, depths BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE kept (client TEXT NOT NULL, stage TEXT NOT NULL, reply TEXT NOT NULL,"
    " PRIMARY KEY (client, stage)) WITHOUT ROWID",
    "CREATE TABLE failures (client TEXT NOT NULL, stage TEXT NOT NULL, reason TEXT NOT NULL,"
    " outcome TEXT NOT NULL, PRIMARY KEY (client, stage, reason)) WITHOUT ROWID",
    "CREATE TABLE events (id INTEGER PRIMARY KEY, client TEXT NOT NULL, stage TEXT NOT NULL,"
    " attempt INTEGER NOT NULL, event TEXT NOT NULL, detail TEXT NOT NULL)",
    "CREATE TABLE releases (id INTEGER PRIMARY KEY, client TEXT NOT NULL, stage TEXT NOT NULL,"
    " direction TEXT NOT NULL CHECK (direction IN ('up', 'down')), field TEXT NOT NULL,"
    " bytes INTEGER NOT NULL CHECK (bytes >= 0), epsilon REAL)",
    "CREATE TABLE workloads (client TEXT NOT NULL, stage TEXT NOT NULL, clips INTEGER NOT NULL,"
    " seconds REAL NOT NULL, tokens REAL NOT NULL, PRIMARY KEY (client, stage)) WITHOUT ROWID",
    "CREATE TABLE payloads (client TEXT NOT NULL, round INTEGER NOT NULL, release TEXT NOT NULL,"
    " payload BLOB NOT NULL, PRIMARY KEY (client, round)) WITHOUT ROWID",
    "CREATE TABLE planned (client TEXT NOT NULL, stage TEXT NOT NULL DEFAULT 'personalize',"
    " method TEXT NOT NULL, bits BLOB NOT NULL, PRIMARY KEY (client, method)) WITHOUT ROWID",
    "CREATE INDEX events_of ON events (client)",
    "CREATE INDEX releases_of ON releases (client)",
    f"PRAGMA user_version = {VERSION}",
)

RELEASE_NAMES = ", ".join(f.name for f in fields(Release))
EVENT_NAMES = ", ".join(f.name for f in fields(Event))


def write_log(db: sqlite3.Connection, log: Log | None) -> None:
    """Write a log, inside the caller's transaction."""
    if log is None:
        return
    places = ", ".join("?" for _ in fields(Release))
    db.executemany(
        f"INSERT INTO releases ({RELEASE_NAMES}) VALUES ({places})",
        [tuple(vars(release).values()) for release in log.releases],
    )
    places = ", ".join("?" for _ in fields(Event))
    db.executemany(
        f"INSERT INTO events ({EVENT_NAMES}) VALUES ({places})",
        [tuple(vars(event).values()) for event in log.events],
    )
    db.executemany(
        "INSERT OR REPLACE INTO workloads VALUES (?, ?, ?, ?, ?)",
        [tuple(vars(workload).values()) for workload in log.workloads],
    )
    db.executemany(
        "INSERT OR REPLACE INTO planned (client, method, bits) VALUES (?, ?, ?)",
        [(plan.client, plan.method, bytes(plan.bits)) for plan in log.planned],
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
