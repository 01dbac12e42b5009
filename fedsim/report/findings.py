"""What was found, in plain sentences: rates with intervals, and methods compared clip by clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import lcm

import numpy as np

from fedsim.report.lines import (
    NOBODY,
    OTHER,
    OWN,
    Kind,
    Line,
    by_key,
    clip_counts,
    number,
    size_digits,
    span,
)
from fedsim.results.statistics import ClipCounts, Comparison, compare
from fedsim.scenario.schema import FULL_PRECISION

_PLAIN = (FULL_PRECISION, "uniform")
_CONTROLS = ("shuffled", "reversed")
_NO_CALIBRATION = "none"
_MOST_SENTENCES = 3  # for each question; more are in the table of comparisons

OWN_CLIPS = "Does it help to tune on a user's own clips?"
LAYERS = "Does a bit depth for each layer beat one depth for all?"
ORDER = "Does it matter which layers keep more bits?"
CALIBRATION = "Does it matter how activation ranges are set?"
COST = "What does the small size cost?"
QUESTIONS = (OWN_CLIPS, LAYERS, ORDER, CALIBRATION, COST)
_SIDES = {
    OWN_CLIPS: ("own clips", "others' clips"),
    LAYERS: ("a depth for each layer", "one depth for all"),
    ORDER: ("the method's order", "a random or reversed one"),
    CALIBRATION: ("the more careful way", "the plainer one"),
    COST: ("the compressed model", "full precision"),
}


@dataclass(frozen=True)
class Compared:
    """Two lines of one part, and how they differ."""

    question: str
    settings: str
    first: Line
    second: Line
    kind: Kind
    result: Comparison
    """In the sense of `kind`: a greater accuracy is a positive difference."""

    def sentence(self) -> str:
        """Return the finding as one sentence."""
        said = self.result.sentence(*self.names(spoken=True), self.kind)
        return f"{self.settings}: {said}." if self.settings else f"{said}."

    def names(self, spoken: bool = False) -> tuple[str, str]:
        """Return the two models' names; of own clips no word is said where they do not differ."""
        same = self.first.method == self.second.method and spoken
        first, second = (
            line.method if line.source == OWN and not same else line.phrase if spoken else line.name
            for line in (self.first, self.second)
        )
        return first, second


def comparisons(lines: Sequence[Line]) -> list[Compared]:
    """Return the comparisons that answer the questions, for one part; none without clip counts."""
    return [
        found
        for question, first, second in _pairs(lines)
        if (found := _compared(question, first, second)) is not None
    ]


def answers(compared: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Return each question that was asked with its answer in sentences."""
    found = []
    for question in QUESTIONS:
        asked = [c for c in compared if c.question == question]
        if not asked:
            continue
        if len(asked) <= _MOST_SENTENCES:
            said = [c.sentence() for c in asked]
        else:
            said = [_tally(Counter(str(c.result.verdict) for c in asked), len(asked), question)]
        found.append((question, said))
    return found


def headline(lines: Sequence[Line]) -> list[str]:
    """Return the rate of full precision and the best rate below it, for lines of one kind."""
    measured = [line for line in lines if line.rate.value is not None]
    full = [line for line in measured if line.allocation == FULL_PRECISION]
    rest = [line for line in measured if line.allocation != FULL_PRECISION]
    said = []
    if full and all(line.rate == full[0].rate for line in full):
        size = span(full[0].megabytes, size_digits(full[0].megabytes))
        said.append(f"Full precision ({size} MB): {_rate_words(full[0])}.")
    if rest:
        best = min(rest, key=_badness)
        least = "lowest WER" if best.rate.kind == "WER" else "highest accuracy"
        which = f"The {least} of {len(rest)} compressed models" if len(rest) > 1 else "Compressed"
        where = f", {best.part.label_but_budget}" if best.part.label_but_budget else ""
        size = span(best.megabytes, size_digits(best.megabytes))
        said.append(f"{which}: {_rate_words(best)}, {best.phrase}, {size} MB{where}.")
    return said


def points(value: float) -> str:
    """Return a difference of rates in points with its sign, such as `+1.2` or `−0.4`."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _rate_words(line: Line) -> str:
    rate = line.rate
    said = f"{rate.kind} {number(rate.value)} %"
    if rate.low is None or rate.high is None:
        return said
    return f"{said} (95 % interval {rate.low:.1f} to {rate.high:.1f})"


def _badness(line: Line) -> float:
    value = line.rate.value or 0.0
    return value if line.rate.kind == "WER" else -value


def _tally(tally: Counter[str], total: int, question: str) -> str:
    """Return how often which verdict came out, as one sentence."""
    first, second = _SIDES[question]
    words = [word for word in ("better", "worse") if tally[word]]
    if not words:
        return f"In none of {total} comparisons could {first} be told apart from {second}."
    apart = [f"{word} than {second} in {tally[word]}" for word in words]
    said = f"{first[0].upper()}{first[1:]} came out {' and '.join(apart)} of {total} comparisons"
    open_ = tally["not distinguishable"]
    return f"{said}; {open_} could not be decided." if open_ else f"{said}."


def _pairs(lines: Sequence[Line]) -> Iterator[tuple[str, Line, Line]]:
    """Yield pairs of lines of one part that are worth comparing, and what each would answer."""
    known = by_key(lines)
    own = [line for line in lines if line.source == OWN]
    planned = [line for line in own if line.allocation not in (*_PLAIN, *_CONTROLS)]
    for line in own:
        if (line.method, OTHER) in known:
            yield OWN_CLIPS, line, known[line.method, OTHER]
    for line in planned:
        for other in own:
            if other.calibration == line.calibration:
                if other.allocation == "uniform":
                    yield LAYERS, line, other
                elif other.allocation in _CONTROLS:
                    yield ORDER, line, other
    yield from _calibrations([x for x in lines if x.source in (OWN, NOBODY)])
    for line in planned:
        if (FULL_PRECISION, NOBODY) in known:
            yield COST, line, known[FULL_PRECISION, NOBODY]


def _calibrations(lines: Sequence[Line]) -> Iterator[tuple[str, Line, Line]]:
    """Yield each calibration with the plainest one of the same allocation."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        if line.allocation != FULL_PRECISION and line.allocation not in _CONTROLS:
            groups.setdefault(line.method.rsplit("/", 1)[0], []).append(line)
    for group in groups.values():
        base = min(
            group, key=lambda x: (x.calibration != _NO_CALIBRATION, x.calibration != "minmax")
        )
        for line in group:
            if line is not base:
                yield CALIBRATION, line, base


def _compared(question: str, first: Line, second: Line) -> Compared | None:
    counts = _matched(clip_counts(first.part, first.rows), clip_counts(second.part, second.rows))
    if counts is None:
        return None
    found = compare(*counts, np.random.default_rng(0))
    kind = first.rate.kind
    if kind == "accuracy":  # errors were compared: what is less of these is more of accuracy
        found = replace(found, difference=-found.difference, low=-found.high, high=-found.low)
    return Compared(question, first.part.label, first, second, kind, found)


def _matched(
    first: dict[str, ClipCounts], second: dict[str, ClipCounts]
) -> tuple[list[ClipCounts], list[ClipCounts]] | None:
    """Return the counts of the clients that both have, each client's in one measure, or None.

    Where one side sums over the models of several other clients, the other is multiplied.
    """
    ours, theirs = [], []
    for client in sorted(first.keys() & second.keys()):
        one, two = first[client], second[client]
        if one.of.shape != two.of.shape or not one.of.any() or not two.of.any():
            continue
        common = lcm(int(one.of.sum()), int(two.of.sum()))
        k, n = common // int(one.of.sum()), common // int(two.of.sum())
        if not np.array_equal(one.of * k, two.of * n):
            continue
        ours.append(ClipCounts(client, one.wrong * k, one.of * k))
        theirs.append(ClipCounts(client, two.wrong * n, two.of * n))
    return (ours, theirs) if ours else None
