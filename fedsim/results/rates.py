"""The rates of the lines of a run, with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from fedsim.base.statistics import ClipCounts, rate
from fedsim.results.lines import Kind, Line, corpus_rate, group_rows, kind_of, number
from fedsim.results.rare import RareRate, rare_rate
from fedsim.results.rows import Row
from fedsim.results.runs import Part


@dataclass(frozen=True)
class Rate:
    """A rate in percent with its 95 % interval; its bounds are None if they are not known."""

    kind: Kind
    value: float | None
    """None if nothing was counted."""
    low: float | None
    high: float | None

    def text(self) -> str:
        """Return the rate and its interval: `12.5 [8.1, 17.0]`."""
        return f"{number(self.value)}{self.interval()}"

    def interval(self) -> str:
        """Return the interval after a space, ` [8.1, 17.0]`; empty if it is not known."""
        if self.low is None or self.high is None:
            return ""
        return f" [{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True)
class PartLine(Line):
    """A line of one part of a report."""

    part: Part

    @cached_property
    def rate(self) -> Rate:
        """The rate of all clients together."""
        return measure(self.part, self.rows)

    @cached_property
    def rare(self) -> RareRate | None:
        """The rate on rare words of all clients together; None if none were counted."""
        return rare_rate(self.part, self.rows)


@lru_cache(maxsize=1024)
def lines_of(part: Part) -> tuple[PartLine, ...]:
    """Return the lines of a part in the order of the printed table.

    They are cached, since an interval over many clients takes a while and is needed often.
    """
    return tuple(PartLine(*key, rows, part) for key, rows in group_rows(part.rows).items())


def measure(part: Part, rows: Sequence[Row]) -> Rate:
    """Return the rate of some rows together: of a run, a budget or one model.

    The interval comes from the counts of single clips. Without these, only a single row has one.
    """
    kind = kind_of(rows)
    value = corpus_rate(rows, kind)
    if value is None:
        return Rate(kind, None, None, None)
    low, high = _bounds(part, rows)
    if kind == "accuracy":
        return Rate(kind, value, _percent(_flipped(high)), _percent(_flipped(low)))
    return Rate(kind, value, _percent(low), _percent(high))


def clip_counts(part: Part, rows: Sequence[Row]) -> dict[str, ClipCounts]:
    """Return the counts of each client's clips, summed over its rows; empty if any are missing.

    A client that tests the models of several other clients has several rows, which are summed.
    """
    wrong: dict[str, np.ndarray] = {}
    of: dict[str, np.ndarray] = {}
    for row in rows:
        plan = part.plan_of.get((row.client, row.method, row.tuned_on))
        if plan is None or not plan.of:
            return {}
        counted = np.array(plan.wrong, np.int64), np.array(plan.of, np.int64)
        wrong[row.client] = wrong.get(row.client, 0) + counted[0]
        of[row.client] = of.get(row.client, 0) + counted[1]
    return {client: ClipCounts(client, wrong[client], of[client]) for client in wrong}


def _bounds(part: Part, rows: Sequence[Row]) -> tuple[float | None, float | None]:
    """Return the interval of the error rate, as fractions."""
    counts = clip_counts(part, rows)
    if counts:
        rng = np.random.default_rng(0)
        interval = rate(list(counts.values()), rng, over_clients=part.clients_are_a_sample)
        return _known(interval.low), _known(interval.high)
    if len(rows) == 1:
        low, high = rows[0].low, rows[0].high
        return (_flipped(high), _flipped(low)) if kind_of(rows) == "accuracy" else (low, high)
    return None, None


def _flipped(share: float | None) -> float | None:
    return None if share is None else min(1.0, max(0.0, 1 - share))


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
