"""The ledger of a run: an SQLite file that holds all that finished, whatever happens to the run.

One transaction per client: a client is in the ledger whole or not at all, also after kill -9 or a
power cut. What a client that is not finished has reached is kept too, where doing it again would
cost the others' time (`keep`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsim.errors import FedsimError
from fedsim.results.ledger_schema import (
    ASKED_GROUP,
    EVENT_NAMES,
    RELEASE_NAMES,
    ROW_NAMES,
    SCHEMA,
    VERSION,
    pack_counts,
    unpack_counts,
    unpack_floats,
    write_log,
)
from fedsim.results.records import Event, Failure, Log, Outcome, Payload, Release, Workload
from fedsim.results.rows import COLUMNS, Plan, Row, Sensed, sort_rows
from fedsim.results.sqlite import connect, explained, transaction

if TYPE_CHECKING:
    import sqlite3


class Ledger:
    """An open ledger. Its methods may be called from any thread; close it, or use `with`."""

    def __init__(self, path: str | Path) -> None:
        """Open the ledger at `path`, or make it there.

        Raises:
            FedsimError: if the file cannot be opened or written, or is of another version.
        """
        self.path = Path(path)
        self._lock = threading.RLock()
        with explained(self.path, "ledger"):
            self._db = connect(self.path)
        try:
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
        log: Log | None = None,
        payloads: Sequence[Payload] = (),
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
                f"INSERT INTO results ({ROW_NAMES}) VALUES ({places})",
                [astuple(row) for row in rows],
            )
            db.execute("DELETE FROM plans WHERE client = ?", (client,))
            db.executemany(
                "INSERT INTO plans VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        p.client,
                        p.method,
                        p.tuned_on,
                        bytes(p.bits),
                        pack_counts(p.wrong),
                        pack_counts(p.of),
                    )
                    for p in plans
                ],
            )
            if sensed is not None:
                values = [
                    np.asarray(v, "<f8").tobytes() for v in (sensed.sensitivity, sensed.quantiles)
                ]
                db.execute(
                    "INSERT OR REPLACE INTO sensed VALUES (?, ?, ?, ?)",
                    (client, *values, bytes(sensed.depths)),
                )
            db.executemany(
                "INSERT OR REPLACE INTO payloads VALUES (?, ?, ?, ?)",
                [astuple(payload) for payload in payloads],
            )
            write_log(db, log)
            db.execute("INSERT OR REPLACE INTO clients (client) VALUES (?)", (client,))

    def keep(self, client: str, stage: str, reply: str, log: Log | None = None) -> None:
        """Write what a client that is not finished yet answered at a stage, as text."""
        self.keep_together(stage, {client: reply}, [] if log is None else [log])

    def keep_together(
        self, stage: str, replies: Mapping[str, str], logs: Iterable[Log] = ()
    ) -> None:
        """Write what several clients answered at a stage (client -> text), of all or of none."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO kept VALUES (?, ?, ?)",
                [(client, stage, reply) for client, reply in replies.items()],
            )
            for log in logs:
                write_log(db, log)

    def fail_client(
        self,
        client: str,
        stage: str,
        reason: str,
        outcome: Outcome = "failed",
        log: Log | None = None,
    ) -> None:
        """Write that a client failed at a stage, and why; what it finished before is kept."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO failures VALUES (?, ?, ?, ?)",
                (client, stage, reason, outcome),
            )
            write_log(db, log)

    def write(self, log: Log) -> None:
        """Write releases and events in one transaction."""
        with self._transaction() as db:
            write_log(db, log)

    def begin_again(self) -> None:
        """Forget what is to be done anew when a run is resumed.

        That is every client that failed, with its results if it has some (a model of another's was
        missing), and what was written of clients of which nothing is kept.
        """
        with self._transaction() as db:
            for table in ("clients", "results", "plans", "sensed", "kept", "payloads"):
                # Who was asked for a group's mean stays so: never twice, with and without one.
                keep = f"AND stage != '{ASKED_GROUP}'" if table == "kept" else ""
                db.execute(
                    f"DELETE FROM {table} WHERE client IN (SELECT client FROM failures) {keep}"
                )
            db.execute("DELETE FROM failures")
            for table in ("releases", "events", "workloads", "planned"):
                db.execute(
                    f"DELETE FROM {table} WHERE client NOT IN (SELECT client FROM clients) AND"
                    " (client, stage) NOT IN (SELECT client, stage FROM kept) AND"
                    f" client NOT IN (SELECT client FROM kept WHERE stage = '{ASKED_GROUP}')"
                )

    def rows(self) -> list[Row]:
        """Return every result, sorted by client, method and `tuned_on`."""
        return sort_rows(
            [Row(*values) for values in self._read(f"SELECT {ROW_NAMES} FROM results")]
        )

    def plans(self) -> Iterator[Plan]:
        """Yield every plan, sorted by client, method and `tuned_on`."""
        query = "SELECT client, method, tuned_on, bits, wrong, of FROM plans ORDER BY 1, 2, 3"
        for client, method, tuned_on, bits, wrong, of in self._read(query):
            yield Plan(
                client, method, tuned_on, tuple(bits), unpack_counts(wrong), unpack_counts(of)
            )

    def sensed(self) -> Iterator[Sensed]:
        """Yield what each client sensed, sorted by client."""
        query = "SELECT client, sensitivity, quantiles, depths FROM sensed ORDER BY client"
        for client, sensitivity, quantiles, depths in self._read(query):
            yield Sensed(
                client, unpack_floats(sensitivity), unpack_floats(quantiles), tuple(depths)
            )

    def payloads(self) -> list[Payload]:
        """Return what the server saw of each client that finished, sorted by client and round."""
        query = "SELECT client, round, release, payload FROM payloads ORDER BY 1, 2"
        return [Payload(*values) for values in self._read(query)]

    def kept(self, stage: str) -> Iterator[str]:
        """Yield what `keep` wrote at a stage, sorted by client."""
        for (reply,) in self._read("SELECT reply FROM kept WHERE stage = ? ORDER BY client", stage):
            yield reply

    def failures(self) -> list[Failure]:
        """Return every failure, sorted by client and stage."""
        found = self._read("SELECT client, stage, reason, outcome FROM failures")
        return [Failure(*values) for values in sorted(found)]

    def events(self) -> list[Event]:
        """Return every event, sorted by client; a client's in the order they happened."""
        found = self._read(f"SELECT {EVENT_NAMES} FROM events ORDER BY client, id")
        return [Event(*values) for values in found]

    def all_releases(self) -> list[Release]:
        """Return every release in the order they were written."""
        found = self._read(f"SELECT {RELEASE_NAMES} FROM releases ORDER BY id")
        return [Release(*values) for values in found]

    def message_bytes(self) -> dict[str, dict[tuple[str, str], int]]:
        """Return client -> (stage, direction) -> bytes of its messages, without models."""
        found: dict[str, dict[tuple[str, str], int]] = {}
        query = (
            "SELECT client, stage, direction, SUM(bytes) FROM releases"
            " WHERE field NOT LIKE 'model %' GROUP BY 1, 2, 3"
        )
        for client, stage, direction, size in self._read(query):
            found.setdefault(client, {})[stage, direction] = size
        return found

    def workloads(self) -> dict[tuple[str, str], Workload]:
        """Return (client, stage) -> how much there was to compute on."""
        found = self._read("SELECT client, stage, clips, seconds, tokens FROM workloads")
        return {values[:2]: Workload(*values) for values in found}

    def planned(self, method: str) -> dict[str, tuple[int, ...]]:
        """Return client -> the bit depths of the model that it was sent for a method."""
        query = "SELECT client, bits FROM planned WHERE method = ?"
        return {client: tuple(bits) for client, bits in self._read(query, method)}

    def finished(self) -> set[str]:
        """Return the keys of the clients that finished."""
        return {client for (client,) in self._read("SELECT client FROM clients")}

    def _set_up(self) -> None:
        with self._transaction() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version == 0 and tables == 0:
                for statement in SCHEMA:
                    db.execute(statement)
            elif version != VERSION:
                raise FedsimError(
                    f"{self.path}: this is not a ledger of this version of fedsim (it has version"
                    f" {version}, {VERSION} is read): start a run in another folder"
                )

    def _read(self, query: str, *values: str) -> list[tuple]:
        with self._lock, explained(self.path, "ledger"):
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, explained(self.path, "ledger"), transaction(self._db) as db:
            yield db
