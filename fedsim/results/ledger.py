"""The ledger of a run: an SQLite file with everything that finished, whatever happens to the run.

One transaction per client: a client is in the ledger completely or not at all, even after kill -9
or a power cut. Replies of clients that have not finished are kept too, where asking again would
cost other clients time (`keep`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsim.errors import FedsimError
from fedsim.results.ledger_reader import LedgerReader
from fedsim.results.ledger_schema import ASKED_GROUP, SCHEMA, insert, pack_counts, write_log
from fedsim.results.records import Log, Outcome, Payload
from fedsim.results.rows import Plan, Row, Sensed
from fedsim.results.sqlite import BUSY_S, connect, explained, transaction

if TYPE_CHECKING:
    import sqlite3


class Ledger(LedgerReader):
    """An open ledger. Its methods may be called from any thread; close it, or use `with`.

    To read one that is written no more, see `fedsim.results.ledger_reader`.
    """

    def __init__(self, path: str | Path, busy_s: float = BUSY_S) -> None:
        """Open the ledger at `path`, or create it.

        Args:
            path: the file.
            busy_s: seconds to wait for another process that has locked the file.

        Raises:
            FedsimError: if the file cannot be opened or written, or is of another version.
        """
        with explained(Path(path), "ledger", busy_s):
            db = connect(Path(path), busy_s)
        super().__init__(Path(path), db, busy_s)
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
        with self._transaction() as db:
            db.execute("DELETE FROM results WHERE client = ?", (client,))
            insert(db, "results", [astuple(row) for row in rows], "INSERT")
            db.execute("DELETE FROM plans WHERE client = ?", (client,))
            insert(
                db,
                "plans",
                [
                    (
                        *(plan.client, plan.method, plan.tuned_on, bytes(plan.bits)),
                        *(pack_counts(plan.wrong), pack_counts(plan.of)),
                    )
                    for plan in plans
                ],
                "INSERT",
            )
            if sensed is not None:
                values = [
                    np.asarray(v, "<f8").tobytes() for v in (sensed.sensitivity, sensed.quantiles)
                ]
                insert(db, "sensed", [(client, *values, bytes(sensed.depths))])
            insert(db, "payloads", [astuple(payload) for payload in payloads])
            write_log(db, log)
            insert(db, "clients", [(client,)])

    def keep(self, client: str, stage: str, reply: str, log: Log | None = None) -> None:
        """Write the reply of an unfinished client at a stage, as text."""
        self.keep_together(stage, {client: reply}, [] if log is None else [log])

    def keep_together(
        self, stage: str, replies: Mapping[str, str], logs: Iterable[Log] = ()
    ) -> None:
        """Write the replies of several clients at a stage (client -> text), all or none."""
        with self._transaction() as db:
            insert(db, "kept", [(client, stage, reply) for client, reply in replies.items()])
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
            insert(db, "failures", [(client, stage, reason, outcome)], "INSERT OR IGNORE")
            write_log(db, log)

    def write(self, log: Log) -> None:
        """Write releases and events in one transaction."""
        with self._transaction() as db:
            write_log(db, log)

    def put_facts(self, facts: Mapping[str, Iterable[tuple[str, str]]]) -> None:
        """Write facts about the run, kind -> (name, value), all or none, replacing those kinds."""
        with self._transaction() as db:
            for kind, named in facts.items():
                db.execute("DELETE FROM facts WHERE kind = ?", (kind,))
                insert(db, "facts", ((kind, name, value) for name, value in named), "INSERT")

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

    def _set_up(self) -> None:
        with self._transaction() as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version == 0 and tables == 0:
                for statement in SCHEMA:
                    db.execute(statement)
        self._check_version()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained(), transaction(self._db) as db:
            yield db
