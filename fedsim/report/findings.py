"""The findings in plain sentences: rates with intervals, and methods compared clip by clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm

import numpy as np

from fedsim.base.statistics import ClipCounts, Comparison, compare
from fedsim.report.comparisons import Pair, Question, pairs_of
from fedsim.results.lines import UNITS, Kind, number, size_digits, span
from fedsim.results.rates import PartLine, clip_counts, lines_of
from fedsim.results.runs import Part

_MAX_SENTENCES = 3  # per question; more comparisons than this are only counted


@dataclass(frozen=True)
class Compared:
    """A pair of models, and how they differ on the same clips."""

    pair: Pair
    kind: Kind
    result: Comparison
    """In the direction of `kind`: a higher accuracy is a positive difference."""

    def sentence(self) -> str:
        """Return the finding as one sentence."""
        verdict = self.result.sentence(*self.pair.spoken, self.kind)
        return f"{self.pair.settings}: {verdict}." if self.pair.settings else f"{verdict}."

    def plain_sentence(self) -> str:
        """Return a finding that is decided in everyday words: errors in a hundred words."""
        first, second = self.pair.spoken
        unit, size = UNITS[self.kind], abs(self.result.difference)
        near, far = sorted((abs(self.result.low), abs(self.result.high)))
        where = f"{self.pair.settings}: of" if self.pair.settings else "Of"
        more = "fewer" if self.result.verdict == "better" else "more"
        does = f"makes {100 * size:.1f} {more} errors than"
        if self.kind == "accuracy":
            more = "more" if self.result.verdict == "better" else "fewer"
            does = f"recognizes {100 * size:.1f} {more} than"
        return (
            f"{where} 100 {unit}s, {first} {does} {second}"
            f" (95 % interval {100 * near:.1f} to {100 * far:.1f})."
        )


def comparisons(parts: Sequence[Part]) -> list[Compared]:
    """Return the comparisons that answer the questions; none without counts of single clips."""
    return [one for pair in pairs_of(parts) if (one := _compared(pair)) is not None]


def answers(compared: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """Return each question that the comparisons answer, with the answer in sentences."""
    by_question: dict[Question, list[Compared]] = {}
    for one in compared:
        by_question.setdefault(one.pair.question, []).append(one)
    return [
        (
            question.text,
            [one.sentence() for one in group]
            if len(group) <= _MAX_SENTENCES
            else [_tally(question, Counter(str(one.result.verdict) for one in group))],
        )
        for question, group in by_question.items()
    ]


def difference(first: PartLine, second: PartLine) -> Comparison | None:
    """Return how two lines differ on the same clips, in the direction of their kind; None without
    counts of single clips."""
    counts = _matched(*(clip_counts(line.part, line.rows) for line in (first, second)))
    if counts is None:
        return None
    sample = first.part.clients_are_a_sample
    result = compare(*counts, np.random.default_rng(0), over_clients=sample)
    if first.rate.kind == "accuracy":  # fewer errors are a higher accuracy
        result = replace(result, difference=-result.difference, low=-result.high, high=-result.low)
    return result


def headline(lines: Sequence[PartLine]) -> list[str]:
    """Return sentences on full precision and the best compressed model, for lines of one kind."""
    measured = [line for line in lines if line.rate.value is not None]
    full = [line for line in measured if line.is_full_precision]
    rest = [line for line in measured if not line.is_full_precision]
    sentences = []
    if full and all(line.rate == full[0].rate for line in full):
        size = span(full[0].megabytes, size_digits(full[0].megabytes))
        kind = full[0].rate.kind
        sentences.append(f"Full precision ({size} MB): {kind} {_rate_words(full[0])}.")
    if rest:
        best = min(rest, key=_badness)
        kind = best.rate.kind
        extreme = "highest accuracy" if kind == "accuracy" else f"lowest {kind}"
        which = f"The {extreme} of {len(rest)} compressed models: "
        which = which if len(rest) > 1 else f"The compressed model: {kind} "
        where = f", {best.part.label_but_budget}" if best.part.label_but_budget else ""
        size = span(best.megabytes, size_digits(best.megabytes))
        sentences.append(f"{which}{_rate_words(best)}, {best.phrase}, {size} MB{where}.")
    return sentences


@dataclass(frozen=True)
class Claim:
    """What was found in one sentence, and what it is about."""

    sentence: str
    kind: Kind
    lines: tuple[PartLine, ...]
    """The models that the sentence compares, or the best one; empty if it counts comparisons."""


def claim(parts: Sequence[Part]) -> Claim | None:
    """Return the first thing to know of some results; None if nothing was counted.

    It is the first comparison of a report that is decided, or how many were, if its question has
    answers under many settings; without comparisons, the best model.
    """
    compared = comparisons(parts)
    if not compared:
        return _best_model([line for part in parts for line in lines_of(part)])
    decided = [one for one in compared if one.result.verdict != "not distinguishable"]
    if not decided:
        return _claimed(compared[0], compared[0].sentence())
    question = decided[0].pair.question
    group = [one for one in compared if one.pair.question == question]
    if len({one.pair.settings for one in group}) > _MAX_SENTENCES:
        tally = Counter(str(one.result.verdict) for one in group)
        return Claim(_tally(question, tally), group[0].kind, ())
    return _claimed(decided[0], decided[0].plain_sentence())


def finding(parts: Sequence[Part]) -> str:
    """Return what was found in one plain sentence; see `claim`."""
    found = claim(parts)
    return found.sentence if found else "No test clip of these results has anything to count."


def points(value: float) -> str:
    """Return a difference of rates in percentage points with its sign: `+1.2` or `−0.4`."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _claimed(one: Compared, sentence: str) -> Claim:
    return Claim(sentence, one.kind, (one.pair.first, one.pair.second))


def _best_model(lines: Sequence[PartLine]) -> Claim | None:
    """Return the last sentence of the headline of the first kind that was measured."""
    measured = [line for line in lines if line.rate.value is not None]
    if not measured:
        return None
    kind = measured[0].rate.kind
    group = [line for line in measured if line.rate.kind == kind]
    small = [line for line in group if not line.is_full_precision]
    sentences = headline(group)
    if not sentences:  # nothing but full precision, at rates that differ
        text = f"{len(group)} results of full precision: {kind} "
        values = [line.rate.value for line in group if line.rate.value is not None]
        return Claim(f"{text}{span(values)} %.", kind, tuple(group))
    return Claim(sentences[-1], kind, (min(small or group, key=_badness),))


def _rate_words(line: PartLine) -> str:
    rate = line.rate
    percent = f"{number(rate.value)} %"
    if rate.low is None or rate.high is None:
        return percent
    return f"{percent} (95 % interval {rate.low:.1f} to {rate.high:.1f})"


def _badness(line: PartLine) -> float:
    value = line.rate.value or 0.0
    return -value if line.rate.kind == "accuracy" else value


def _tally(question: Question, tally: Counter[str]) -> str:
    """Return how often each verdict was reached, as one sentence."""
    first, second, total = question.first, question.second, tally.total()
    words = [word for word in ("better", "worse") if tally[word]]
    if not words:
        return f"None of {total} comparisons could tell {first} apart from {second}."
    apart = [f"{word} than {second} in {tally[word]}" for word in words]
    sentence = (
        f"{first[0].upper()}{first[1:]} came out {' and '.join(apart)} of {total} comparisons"
    )
    undecided = tally["not distinguishable"]
    return f"{sentence}; {undecided} remained undecided." if undecided else f"{sentence}."


def _compared(pair: Pair) -> Compared | None:
    result = difference(pair.first, pair.second)
    return None if result is None else Compared(pair, pair.first.rate.kind, result)


def _matched(
    first: dict[str, ClipCounts], second: dict[str, ClipCounts]
) -> tuple[list[ClipCounts], list[ClipCounts]] | None:
    """Return the counts of the clients that both sides have, or None if there are none.

    If one side sums over the models of several other clients, the other side is multiplied, so that
    both count the same number of words.
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
