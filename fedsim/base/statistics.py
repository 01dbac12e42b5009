"""How certain a result is: confidence intervals of error rates, and of two models' difference.

A rate is a corpus rate: the errors of all clips divided by the words of all clips. Its interval
covers what the rate would be with equally many other clients and other clips of theirs or, with a
single client, with other clips of that client. Two sources of chance are resampled, each on its
own: whole clients, and clips. The wider of the two intervals is returned.

- Resampling whole clients gives the right spread, because differences between clients include the
  chance of their clips (Field and Welsh 2007, "Bootstrapping clustered data"). Resampling clips
  within resampled clients would count that chance twice (Davison and Hinkley 1997, "Bootstrap
  Methods and their Application", section 3.8): where clients are alike, the interval would be 1.4
  times too wide.
- Resampling clips sets a lower bound: without it, a few clients that happen to have the same rate
  would have an interval of zero width.

If clients are not a sample of others (the two genders, the five languages of a study), set
`over_clients` to False: then only the clips are left to chance.

Percentiles over n clients or clips are too narrow if n is small. Their distances from the rate are
therefore multiplied by sqrt(n / (n - 1)) * t / 1.96, where t is the 97.5 % point of Student's
distribution with n - 1 degrees of freedom: the correction of Hesterberg 2015, "What Teachers Should
Know About the Bootstrap", applied to the distances instead of the percentiles. It is 1.05 with 40
clips and 1.08 with 24 clients, but 9.2 with two clients, which say almost nothing about a third.

A bootstrap cannot see what never happened: without any error, the interval has zero width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsim.base.clip_counts import ClipCounts, by_client, in_pairs

RESAMPLES = 2_000
MAX_CLIPS = 1_000_000
"""If more clips than this would be needed to settle a comparison, no number is given."""
BATCH = 2**20
"""Clients or clips drawn at a time, 8 bytes each."""
_Z95 = 1.959964  # 97.5 % of a normal distribution lies below
_Z80 = 0.841621  # 80 % of it

Verdict = Literal["better", "worse", "not distinguishable"]


@dataclass(frozen=True)
class Interval:
    """A rate and its 95 % interval; 0.12 means 12 %. All are NaN if nothing was counted; the bounds
    are NaN if there is a single clip."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """How the rates of two models differ on the same clips: the first's minus the second's.

    In units of the rate: -0.03 means that the first model makes three fewer errors per hundred
    words.
    """

    difference: float
    low: float
    """Lower end of the 95 % interval of the difference."""
    high: float
    verdict: Verdict
    """On the first model: `better` if it makes fewer errors and the interval lies below 0."""
    more_clips: int | None
    """How many more clips would settle it in four studies out of five; see `clips_to_settle`."""

    def sentence(self, first: str, second: str, unit: str) -> str:
        """Return the verdict as a sentence.

        Args:
            first: name of the first model.
            second: name of the second.
            unit: what is counted, such as `WER`.
        """
        pair = f"{first} and {second} cannot be told apart"
        if math.isnan(self.difference):
            return f"{pair}: there is nothing to count"
        size = f"{_points(self.difference)} points of {unit}"
        if math.isnan(self.low):
            return f"{pair}: difference {size}, but one clip has no interval"
        if self.verdict == "not distinguishable":
            text = f"{pair}: difference {size} ({_points(self.low)} to {_points(self.high)})"
            if self.more_clips is None:
                return text
            return f"{text}; about {_two_digits(self.more_clips):,} more clips would settle it"
        near, far = sorted((abs(self.low), abs(self.high)))
        digits = 1 if near >= 0.0005 else 2  # a bound that is not 0 must not read 0.0
        by, near_end, far_end = (_points(v, digits) for v in (abs(self.difference), near, far))
        return (
            f"{first} is {self.verdict} than {second} by {by} points of {unit}"
            f" (95 % interval {near_end} to {far_end})"
        )


def rate(
    counts: Sequence[ClipCounts],
    rng: np.random.Generator,
    *,
    over_clients: bool = True,
    resamples: int = RESAMPLES,
    batch: int = BATCH,
) -> Interval:
    """Return the corpus rate of all clients' clips and its 95 % interval.

    Args:
        counts: of each client, in any order; clients without clips are ignored.
        rng: the only source of randomness: generators in the same state give the same interval.
        over_clients: whether the clients are a sample, so that others might have been drawn.
        resamples: how many, of clients and of clips.
        batch: how many clients or clips are drawn at a time; bounds the memory.

    Raises:
        FedsimError: if a client appears twice.
    """
    clients = by_client(counts)
    wrong, of = [c.wrong for c in clients], [c.of for c in clients]
    found = _interval(wrong, of, rng, over_clients, resamples, batch)
    return Interval(found.value, max(found.low, 0.0), found.high)


def compare(
    first: Sequence[ClipCounts],
    second: Sequence[ClipCounts],
    rng: np.random.Generator,
    *,
    over_clients: bool = True,
    resamples: int = RESAMPLES,
    batch: int = BATCH,
) -> Comparison:
    """Return the difference of two models' rates on the same clips, and whether it is significant.

    The interval is of the paired difference: every resample draws the same clips for both models.
    `more_clips` is None unless the models are not distinguishable; see `clips_to_settle`.

    Args:
        first: counts of one model for each client.
        second: of the other, for the same clients and the same clips in the same order.
        rng: the only source of randomness: generators in the same state give the same result.
        over_clients: whether the clients are a sample, so that others might have been drawn.
        resamples: how many, of clients and of clips.
        batch: how many clients or clips are drawn at a time; bounds the memory.

    Raises:
        FedsimError: if a client appears twice, or clients or clips do not match.
    """
    pairs = in_pairs(first, second)
    less = [one.wrong - two.wrong for one, two in pairs]
    counted = [one.of for one, _ in pairs]
    found = _interval(less, counted, rng, over_clients, resamples, batch)
    verdict: Verdict = "not distinguishable"
    if found.high < 0:
        verdict = "better"
    elif found.low > 0:
        verdict = "worse"
    clips = sum(len(wrong) for wrong in less)
    more = clips_to_settle(found, clips) if verdict == "not distinguishable" else None
    return Comparison(found.value, found.low, found.high, verdict, more)


def clips_to_settle(found: Interval, clips: int) -> int | None:
    """Return how many more clips would settle whether a difference is 0.

    The observed difference d is taken for the true one. The distance h from d to the end of its
    interval beyond 0 shrinks as 1 / sqrt(clips), if the new clips come from further clients with as
    many clips each (or from the same single client). Four studies out of five settle the question
    (a power of 80 %, with Student's t taken for normal) if they have

        clips * (h / |d| * (1.96 + 0.84) / 1.96) ** 2

    clips, of which `clips` exist. None if d is 0 or NaN, and if more than a million more would be
    needed.

    Args:
        found: the difference and its interval.
        clips: how many clips it comes from.
    """
    size = abs(found.value)
    beyond = found.value - found.low if found.value > 0 else found.high - found.value
    if not size > 0:
        return None
    more = clips * (beyond / size * (_Z95 + _Z80) / _Z95) ** 2 - clips
    return math.ceil(more) if more <= MAX_CLIPS else None


def widened(value: float, drawn: np.ndarray, units: int) -> tuple[float, float]:
    """Return the bounds of a value's 95 % interval: percentiles of its resamples, moved apart.

    Args:
        value: the value on the whole sample.
        drawn: the value on each resample, (resamples,).
        units: the number of units that are resampled, at least two; the fewer, the wider the
            interval.
    """
    from scipy.special import stdtrit  # takes long to import

    low, high = np.percentile(drawn, [2.5, 97.5])
    widen = math.sqrt(units / (units - 1)) * float(stdtrit(units - 1, 0.975)) / _Z95
    return float(value + widen * (low - value)), float(value + widen * (high - value))


def _interval(
    wrong: Sequence[np.ndarray],
    of: Sequence[np.ndarray],
    rng: np.random.Generator,
    over_clients: bool,
    resamples: int,
    batch: int,
) -> Interval:
    """Return sum(wrong) / sum(of) and its interval; each holds one array (clips,) per client."""
    words = sum(int(counted.sum()) for counted in of)
    if words == 0:
        return Interval(math.nan, math.nan, math.nan)
    levels = [(np.concatenate(wrong), np.concatenate(of))]
    if len(of) > 1 and over_clients:
        top, bottom = (np.array([clips.sum() for clips in part]) for part in (wrong, of))
        levels.append((top, bottom))
    bounds = [_bounds(*level, rng, resamples, batch) for level in levels if len(level[0]) > 1]
    low = min((low for low, _ in bounds), default=math.nan)
    high = max((high for _, high in bounds), default=math.nan)
    return Interval(sum(int(w.sum()) for w in wrong) / words, low, high)


def _bounds(
    top: np.ndarray, bottom: np.ndarray, rng: np.random.Generator, resamples: int, batch: int
) -> tuple[float, float]:
    """Return the bounds of the interval of sum(top) / sum(bottom) when units are resampled.

    Resamples without any word are left out. Memory does not grow with the number of resamples.

    Args:
        top: errors (units,), at least two units.
        bottom: words (units,).
        rng: draws the units.
        resamples: how many.
        batch: how many units are drawn at a time, if a resample has no more.
    """
    # scipy.stats.bootstrap has the same percentiles, but a single resample without words makes both
    # of its bounds NaN.
    units, rates = len(top), []
    step = max(1, batch // units)
    for done in range(0, resamples, step):
        drawn = rng.integers(units, size=(min(step, resamples - done), units))
        above, below = top[drawn].sum(axis=1), bottom[drawn].sum(axis=1)
        rates.append(above[below > 0] / below[below > 0])
    return widened(float(top.sum() / bottom.sum()), np.concatenate(rates), units)


def _points(value: float, digits: int = 1) -> str:
    return f"{100 * value:z.{digits}f}".replace("-", "−")


def _two_digits(count: int) -> int:
    return int(float(f"{count:.1e}"))
