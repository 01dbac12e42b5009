"""Reading a ledger: every row fits its checksum, or the ledger is damaged."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.errors import FedsimError
from fedsim.results.ledger_schema import TABLES, VERSION, checksum, unpack_counts, unpack_floats
from fedsim.results.records import (
    FULL_MODEL,
    PUBLIC_CLIPS,
    Event,
    Failure,
    Payload,
    Planned,
    Release,
    Workload,
)
from fedsim.results.rows import Plan, Row, Sensed, sort_rows
from fedsim.results.sqlite import BUSY_S, check_structure, connected_to_read, damaged, explained

if TYPE_CHECKING:
    import sqlite3


class LedgerReader:
    """An open ledger, to read. Its methods may be called from any thread, and raise `FedsimError`
    where it is damaged."""

    def __init__(self, path: Path, db: sqlite3.Connection, busy_s: float = BUSY_S) -> None:
        self.path = path
        self._db = db
        self._busy_s = busy_s
        self._lock = threading.RLock()

    def check(self) -> None:
        """Check all of the ledger: that no page is lost, and that every row fits its checksum.

        Raises:
            FedsimError: if it is damaged.
        """
        with self._lock, self._explained():
            check_structure(self._db)
            for table in TABLES:
                for _ in self._scan(table):
                    pass

    def rows(self) -> list[Row]:
        """Return every result, sorted by client, method and `tuned_on`."""
        return sort_rows([Row(*values) for values in self._read("results")])

    def plans(self) -> Iterator[Plan]:
        """Yield every plan, sorted by client, method and `tuned_on`."""
        for row in self._read("plans", "ORDER BY client, method, tuned_on"):
            client, method, tuned_on, bits, wrong, of = row
            yield Plan(
                client, method, tuned_on, tuple(bits), unpack_counts(wrong), unpack_counts(of)
            )

    def sensed(self) -> Iterator[Sensed]:
        """Yield what the server knows of each client's layers, sorted by client."""
        for client, sensitivity, quantiles, depths in self._read("sensed", "ORDER BY client"):
            yield Sensed(
                client, unpack_floats(sensitivity), unpack_floats(quantiles), tuple(depths)
            )

    def payloads(self) -> list[Payload]:
        """Return the releases of each finished client as bytes, sorted by client and round."""
        return [Payload(*values) for values in self._read("payloads", "ORDER BY client, round")]

    def kept(self, stage: str) -> Iterator[str]:
        """Yield the replies that were kept at a stage, sorted by client."""
        for _, _, reply in self._read("kept", "WHERE stage = ? ORDER BY client", stage):
            yield reply

    def failures(self) -> list[Failure]:
        """Return every failure, sorted by client and stage."""
        return [Failure(*values) for values in sorted(self._read("failures"))]

    def events(self) -> list[Event]:
        """Return every event, sorted by client and then by time."""
        return [Event(*values) for values in self._read("events", "ORDER BY client, id")]

    def all_releases(self) -> list[Release]:
        """Return every release in the order of writing."""
        return [Release(*values) for values in self._read("releases", "ORDER BY id")]

    def has_noisy_releases(self) -> bool:
        """Return whether any client has released something that cost epsilon."""
        return bool(self._read("releases", "WHERE epsilon IS NOT NULL LIMIT 1"))

    def message_bytes(self) -> dict[str, dict[tuple[str, str], int]]:
        """Return client -> (stage, direction) -> bytes of its messages.

        Models and public clips, which devices download beside them, are not counted.
        """
        sizes: dict[str, dict[tuple[str, str], int]] = {}
        with self._lock, self._explained():
            for client, stage, direction, field, size, _ in self._scan("releases"):
                if not field.startswith("model ") and field not in (FULL_MODEL, PUBLIC_CLIPS):
                    of_client = sizes.setdefault(client, {})
                    of_client[stage, direction] = of_client.get((stage, direction), 0) + size
        return sizes

    def workloads(self) -> dict[tuple[str, str], Workload]:
        """Return (client, stage) -> how much audio there was to compute on."""
        return {values[:2]: Workload(*values) for values in self._read("workloads")}

    def planned(self, method: str) -> dict[str, Planned]:
        """Return client -> the plan of the model that it was sent for a method."""
        rows = self._read("planned", "WHERE method = ?", method)
        return {
            client: Planned(client, method, tuple(bits), language)
            for client, _, _, bits, language in rows
        }

    def finished(self) -> set[str]:
        """Return the keys of the clients that finished."""
        return {client for (client,) in self._read("clients")}

    def facts(self, kind: str) -> dict[str, str]:
        """Return name -> value of what was written with `put_facts`, sorted by name."""
        rows = self._read("facts", "WHERE kind = ? ORDER BY name", kind)
        return {name: value for _, name, value in rows}

    def _check_version(self) -> None:
        with self._lock, self._explained():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise FedsimError(
                f"{self.path}: this is not a ledger of this version of fedsim (its format is"
                f" {version}, not {VERSION}): start a run in another folder"
            )

    def _read(self, table: str, rest: str = "", *values: str) -> list[tuple]:
        with self._lock, self._explained():
            return list(self._scan(table, rest, *values))

    def _scan(self, table: str, rest: str = "", *values: str) -> Iterator[tuple[Any, ...]]:
        """Yield the columns of rows, each of which fits its checksum."""
        first = 0 if TABLES[table].key else 1  # an id comes before the columns
        for *row, check in self._db.execute(f"SELECT * FROM {table} {rest}", values):
            if check != checksum(table, row):
                raise damaged(self.path, "ledger")
            yield tuple(row[first:])

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self.path, "ledger", self._busy_s)


@contextmanager
def read_ledger(path: Path) -> Iterator[LedgerReader]:
    """Open a ledger to read it, also on a disk that cannot be written.

    Raises:
        FedsimError: if there is none, it cannot be read, is damaged, or of another version.
    """
    with ExitStack() as stack:
        with explained(path, "ledger"):
            ledger = LedgerReader(path, stack.enter_context(connected_to_read(path)))
        ledger._check_version()
        yield ledger
