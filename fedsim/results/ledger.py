"""The ledger of a run: an SQLite file with everything that finished, whatever happens to the run.

One transaction per client: a client is in the ledger completely or not at all, even after kill -9
or a power cut. Replies of clients that have not finished are kept too, where asking again would
cost other clients time (`keep`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
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
from fedsim.results.records import (
    FULL_MODEL,
    PUBLIC_CLIPS,
    Event,
    Failure,
    Log,
    Outcome,
    Payload,
    Release,
    Workload,
)
from fedsim.results.rows import COLUMNS, Plan, Row, Sensed, sort_rows
from fedsim.results.sqlite import BUSY_S, connect, explained, transaction

if TYPE_CHECKING:
    import sqlite3


class Ledger:
    """An open ledger. Its methods may be called from any thread; close it, or use `with`."""

    def __init__(self, path: str | Path, busy_s: float = BUSY_S) -> None:
        """Open the ledger at `path`, or create it.

        Args:
            path: the file.
            busy_s: seconds to wait for another process that has locked the file.

        Raises:
            FedsimError: if the file cannot be opened or written, or is of another version.
        """
        self.path = Path(path)
        self._busy_s = busy_s
        self._lock = threading.RLock()
        with self._explained():
            self._db = connect(self.path, busy_s)
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
        """Write all results of a client in one transaction, replacing any that it had.

        Raises:
            ValueError: if a row belongs to another client, or two rows have the same method and
                `tuned_on`.
            FedsimError: if the file cannot be written; nothing of the client is written then.
        """
        if {client} < {client, *(row.client for row in rows), *(plan.client for plan in plans)}:
            raise ValueError(
                f"client {client!r}: a row belongs to another client: pass only its own"
            )
        if len({(row.method, row.tuned_on) for row in rows}) < len(rows):
            raise ValueError(
                f"client {client!r}: two rows have the same method and tuned_on: pass one of them"
            )
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
                        *(plan.client, plan.method, plan.tuned_on, bytes(plan.bits)),
                        *(pack_counts(plan.wrong), pack_counts(plan.of)),
                    )
                    for plan in plans
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
        """Write the reply of an unfinished client at a stage, as text."""
        self.keep_together(stage, {client: reply}, [] if log is None else [log])

    def keep_together(
        self, stage: str, replies: Mapping[str, str], logs: Iterable[Log] = ()
    ) -> None:
        """Write the replies of several clients at a stage (client -> text), all or none."""
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
        """Write that a client failed at a stage, and why; its earlier results are kept."""
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
        """Delete what a resumed run does again.

        That is everything about clients that failed, including results that they have (a model of
        another client may have been missing), and the logs of stages whose reply was not kept.
        """
        with self._transaction() as db:
            for table in ("clients", "results", "plans", "sensed", "kept", "payloads"):
                # Groups are never asked twice: two sums, with and without a client, reveal it.
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
        """Yield what the server knows of each client's layers, sorted by client."""
        query = "SELECT client, sensitivity, quantiles, depths FROM sensed ORDER BY client"
        for client, sensitivity, quantiles, depths in self._read(query):
            yield Sensed(
                client, unpack_floats(sensitivity), unpack_floats(quantiles), tuple(depths)
            )

    def payloads(self) -> list[Payload]:
        """Return the releases of each finished client as bytes, sorted by client and round."""
        query = "SELECT client, round, release, payload FROM payloads ORDER BY 1, 2"
        return [Payload(*values) for values in self._read(query)]

    def kept(self, stage: str) -> Iterator[str]:
        """Yield the replies that were kept at a stage, sorted by client."""
        for (reply,) in self._read("SELECT reply FROM kept WHERE stage = ? ORDER BY client", stage):
            yield reply

    def failures(self) -> list[Failure]:
        """Return every failure, sorted by client and stage."""
        records = self._read("SELECT client, stage, reason, outcome FROM failures")
        return [Failure(*values) for values in sorted(records)]

    def events(self) -> list[Event]:
        """Return every event, sorted by client and then by time."""
        records = self._read(f"SELECT {EVENT_NAMES} FROM events ORDER BY client, id")
        return [Event(*values) for values in records]

    def all_releases(self) -> list[Release]:
        """Return every release in the order of writing."""
        records = self._read(f"SELECT {RELEASE_NAMES} FROM releases ORDER BY id")
        return [Release(*values) for values in records]

    def message_bytes(self) -> dict[str, dict[tuple[str, str], int]]:
        """Return client -> (stage, direction) -> bytes of its messages.

        Models and public clips, which devices download beside them, are not counted.
        """
        sizes: dict[str, dict[tuple[str, str], int]] = {}
        query = (
            "SELECT client, stage, direction, SUM(bytes) FROM releases"
            " WHERE field NOT LIKE 'model %' AND field NOT IN (?, ?) GROUP BY 1, 2, 3"
        )
        for client, stage, direction, size in self._read(query, FULL_MODEL, PUBLIC_CLIPS):
            sizes.setdefault(client, {})[stage, direction] = size
        return sizes

    def workloads(self) -> dict[tuple[str, str], Workload]:
        """Return (client, stage) -> how much audio there was to compute on."""
        records = self._read("SELECT client, stage, clips, seconds, tokens FROM workloads")
        return {values[:2]: Workload(*values) for values in records}

    def planned(self, method: str) -> dict[str, tuple[int, ...]]:
        """Return client -> the plan of the model that it was sent for a method."""
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
                    f"{self.path}: this is not a ledger of this version of fedsim (its format is"
                    f" {version}, not {VERSION}): start a run in another folder"
                )

    def _read(self, query: str, *values: str) -> list[tuple]:
        with self._lock, self._explained():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained(), transaction(self._db) as db:
            yield db

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self.path, "ledger", self._busy_s)
