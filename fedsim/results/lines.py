"""The lines of a report: what one method reached in one part, over all clients, and how surely."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from fedsim.base.statistics import ClipCounts, rate
from fedsim.base.units import MB
from fedsim.results.rows import Row
from fedsim.results.runs import Part
from fedsim.scenario.methods import FULL_PRECISION

NOBODY, OWN, OTHER = "-", "own", "other"
_FIRST = (FULL_PRECISION, "uniform")

Kind = Literal["WER", "accuracy"]
"""What is measured: word error rate, or the share of clips that are recognized."""


@dataclass(frozen=True)
class Rate:
    """A rate in percent with its 95 % interval; bounds are None where they are not known."""

    kind: Kind
    value: float | None
    """None if nothing was counted."""
    low: float | None
    high: float | None

    def text(self) -> str:
        """Return the rate and its interval: `12.5 [8.1, 17.0]`."""
        return f"{number(self.value)}{self.interval()}"

    def interval(self) -> str:
        """Return the interval with a space before it, or nothing if it is not known."""
        if self.low is None or self.high is None:
            return ""
        return f" [{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True)
class Line:
    """What one method reached, tuned on the clients' own clips or on others'."""

    part: Part
    method: str
    source: str
    """`-`, `own` or `other`."""
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """The line in a few words: `myqasr/cosine, own clips`."""
        return line_name(self.method, self.source)

    @property
    def phrase(self) -> str:
        """The line as part of a sentence: `myqasr/cosine tuned on own clips`."""
        return self.name.replace(", ", " tuned on ", 1)

    @property
    def allocation(self) -> str:
        """How layers got their bit depths."""
        return self.rows[0].allocation

    @property
    def calibration(self) -> str:
        """How activation ranges were set."""
        return self.rows[0].calibration

    @property
    def megabytes(self) -> list[float]:
        """The size of each model, in MB."""
        return [row.file_bytes / MB for row in self.rows]

    @property
    def mean_bits(self) -> list[float]:
        """The mean bit depth of each model."""
        return [row.mean_bits for row in self.rows]

    @cached_property
    def rate(self) -> Rate:
        """The rate of all clients together."""
        return measure(self.part, self.rows)


def line_name(method: str, source: str) -> str:
    """Return a method and whose clips it is tuned on in words."""
    if method == FULL_PRECISION:
        return "full precision"
    words = {NOBODY: "no clips", OWN: "own clips", OTHER: "others' clips"}
    return f"{method}, {words[source]}"


@lru_cache(maxsize=1024)
def lines_of(part: Part) -> tuple[Line, ...]:
    """Return the lines of a part in the order of the printed table.

    They are kept, for an interval over many clients takes a while and is asked for often.
    """
    found: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(part.rows, key=lambda row: (_rank(row.allocation), row.method)):
        for source in (NOBODY, OWN, OTHER):
            found.setdefault((row.method, source), [])
        found[row.method, source_of(row)].append(row)
    return tuple(Line(part, *key, tuple(rows)) for key, rows in found.items() if rows)


def source_of(row: Row) -> str:
    """Return whether a row's model was tuned on nobody's clips, the client's own or another's."""
    if row.tuned_on in (NOBODY, OWN, OTHER):
        return row.tuned_on
    return OWN if row.tuned_on == row.client else OTHER


def kind_of(rows: Iterable[Row]) -> Kind:
    """Return what rows measure; words where both are there."""
    return "WER" if any(row.words is not None for row in rows) else "accuracy"


def measure(part: Part, rows: Sequence[Row]) -> Rate:
    """Return the rate of all rows together: of a run, a budget or one model.

    The interval comes from the counts of the clips. Without them it is known for one row only.
    """
    kind = kind_of(rows)
    wrong, of = (sum(values) for values in zip(*map(_wrong_of, rows), strict=True))
    if not of:
        return Rate(kind, None, None, None)
    low, high = _bounds(part, rows)
    if kind == "WER":
        return Rate(kind, 100 * wrong / of, _percent(low), _percent(high))
    value = 100 * (of - wrong) / of
    return Rate(kind, value, _percent(_flipped(high)), _percent(_flipped(low)))


def clip_counts(part: Part, rows: Sequence[Row]) -> dict[str, ClipCounts]:
    """Return the counts of each client's clips, summed over its rows; empty if any are missing.

    A client that tests the models of several others has several rows, and so a sum.
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


def number(value: float | None, digits: int = 1) -> str:
    """Return a number for a table, `-` for one that is not known."""
    return "-" if value is None else f"{value:.{digits}f}"


def span(values: Sequence[float], digits: int = 1) -> str:
    """Return the least and the greatest number, once where they look alike."""
    least, most = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return least if least == most else f"{least}–{most}"


def size_digits(megabytes: Iterable[float]) -> int:
    """Return how many decimals sizes need: two for models of a few MB."""
    return 1 if max(megabytes, default=0.0) >= 10 else 2


def _bounds(part: Part, rows: Sequence[Row]) -> tuple[float | None, float | None]:
    """Return the interval of the error rate, as fractions."""
    counts = clip_counts(part, rows)
    if counts:
        rng = np.random.default_rng(0)
        found = rate(list(counts.values()), rng, over_clients=part.clients_are_a_sample)
        return _known(found.low), _known(found.high)
    if len(rows) == 1:
        low, high = rows[0].low, rows[0].high
        return (low, high) if kind_of(rows) == "WER" else (_flipped(high), _flipped(low))
    return None, None


def _wrong_of(row: Row) -> tuple[int, int]:
    if row.words is not None:
        return row.errors or 0, row.words
    return (0, 0) if row.correct is None else (row.clips - row.correct, row.clips)


def _flipped(share: float | None) -> float | None:
    return None if share is None else min(1.0, max(0.0, 1 - share))


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rank(allocation: str) -> int:
    return _FIRST.index(allocation) if allocation in _FIRST else len(_FIRST)


def kinds_of(lines: Iterable[Line]) -> list[Kind]:
    """Return what the lines measure, without repeats."""
    return list(dict.fromkeys(kind_of(line.rows) for line in lines))
