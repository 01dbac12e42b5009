"""How evenly the clients of a run are served: the rates of each, and the clips left no worse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedsim.base.fairness import OverClients, over_clients, share_no_worse
from fedsim.results.lines import corpus_rate
from fedsim.results.rare import RareRate
from fedsim.results.rates import PartLine, lines_of
from fedsim.results.rows import Row


@dataclass(frozen=True)
class Fairness:
    """How evenly the clients of a line are served."""

    over_clients: OverClients
    """Of their rates in percent, so that its spread is in percentage points."""
    no_worse: float | None
    """The percentage of clips with no more errors than in full precision; None for full precision
    itself, and without counts of single clips of both."""
    rare: RareRate | None
    """The errors on rare words, of all clients together; None if none were counted."""


def client_rates(line: PartLine) -> dict[str, float]:
    """Return client -> the rate of all of its rows together, in percent; clients of which nothing
    was counted are left out."""
    rows_of: dict[str, list[Row]] = {}
    for row in line.rows:
        rows_of.setdefault(row.client, []).append(row)
    rates = {client: corpus_rate(rows, line.rate.kind) for client, rows in rows_of.items()}
    return {client: rate for client, rate in rates.items() if rate is not None}


def fairness_of(line: PartLine) -> Fairness | None:
    """Return how evenly the clients of a line are served; None if nothing was counted."""
    rates = list(client_rates(line).values())
    spread = over_clients(rates, higher_is_better=line.rate.kind == "accuracy")
    if spread is None:
        return None
    share = None if line.is_full_precision else share_no_worse(_beside_full_precision(line))
    return Fairness(spread, None if share is None else 100 * share, line.rare)


def _beside_full_precision(line: PartLine) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield the errors on each clip, and those of full precision, for each row that has both.

    A client that tests the models of several others has several rows: each of its clips then counts
    once for each model.
    """
    plan_of = line.part.plan_of
    full = next((x for x in lines_of(line.part) if x.is_full_precision), None)
    reference = {row.client: row for row in full.rows} if full else {}
    for row in line.rows:
        other = reference.get(row.client)
        if other is None:
            continue
        plans = [plan_of.get((r.client, r.method, r.tuned_on)) for r in (row, other)]
        if plans[0] and plans[1] and plans[0].of and plans[0].of == plans[1].of:
            yield plans[0].wrong, plans[1].wrong
