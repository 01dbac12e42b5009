"""A run's round on the virtual clock, and the file that keeps it: timeline.parquet."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter

from fedsim.base.files import atomic_write
from fedsim.errors import FedsimError
from fedsim.fleet.timeline import OUTCOMES, ServerTotals, Timeline, from_arrow, to_arrow


@dataclass(frozen=True)
class TimedRound:
    """The timelines of a round, and what the clock knew of each client's device."""

    model: str
    """The label of the timed model, such as `myqasr/cosine`."""
    timelines: tuple[Timeline, ...]
    server: ServerTotals
    budgets: Mapping[str, int]
    """Client -> its budget: the largest model file that it accepts, in bytes."""
    sensing: Mapping[str, str | None]
    """Client -> how its device holds the full-precision model (`fedsim.quant.memory`); None if it
    cannot."""

    @cached_property
    def devices(self) -> Mapping[str, str]:
        """Client -> the class of its device."""
        return {line.client: line.device for line in self.timelines}


def write_round(path: Path, timed: TimedRound) -> None:
    """Write a round as Parquet: one row per client, and the server's totals in the metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {"server": json.dumps(asdict(timed.server)), "model": timed.model}
    table = to_arrow(timed.timelines, metadata)
    clients = table.column("client").to_pylist()
    for name, kind, values in (
        ("budget_bytes", pa.int64(), timed.budgets),
        ("sensing", pa.string(), timed.sensing),
    ):
        table = table.append_column(name, pa.array([values[c] for c in clients], kind))
    with atomic_write(path) as file:
        pq.write_table(table, file, write_page_checksum=True)


def read_round(path: Path) -> TimedRound:
    """Read what `write_round` wrote.

    Raises:
        FedsimError: if the file is damaged, or of another version of fedsim.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, page_checksum_verification=True)
        metadata = table.schema.metadata
        clients, budgets, sensing = (
            table.column(name).to_pylist() for name in ("client", "budget_bytes", "sensing")
        )
        timed = TimedRound(
            model=metadata[b"model"].decode(),
            timelines=tuple(from_arrow(table)),
            server=TypeAdapter(ServerTotals).validate_json(metadata[b"server"], strict=True),
            budgets=dict(zip(clients, budgets, strict=True)),
            sensing=dict(zip(clients, sensing, strict=True)),
        )
        _check(timed)
        return timed
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise FedsimError(
            f"{path}: this is not a timeline of this version of fedsim, or it is damaged: run the"
            f" scenario again"
        ) from error


def _check(timed: TimedRound) -> None:
    """Raise `ValueError` for a number or a word that no round has."""
    for values in (astuple(timed.server), *map(astuple, timed.timelines)):
        numbers = [value for value in values if isinstance(value, int | float)]
        if not all(0 <= number < math.inf for number in numbers):
            raise ValueError("a negative number, or one that is not finite")
    if not {line.outcome for line in timed.timelines} <= set(OUTCOMES):
        raise ValueError("an outcome that no client has")
    if any(budget is None or budget < 0 for budget in timed.budgets.values()):
        raise ValueError("a client without a budget")
