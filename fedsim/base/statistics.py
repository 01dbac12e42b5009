"""How sure a result is: the interval of an error rate, of two models' difference, of a plan.

A rate is a corpus rate: the errors of all clips over the words of all clips. Its interval says what
the rate might be with as many other clients and other clips of theirs; with one client, with other
clips of that client. Two sources of chance are resampled, each on its own: whole clients, and
clips. The wider of the two intervals is given.

- Whole clients alone have the right spread, for what differs between clients includes the chance of
  their clips (Field and Welsh 2007, "Bootstrapping clustered data"). Clips drawn anew within
  clients drawn anew count that chance twice (Davison and Hinkley 1997, "Bootstrap Methods and their
  Application", section 3.8): where clients are alike, such an interval is 1.4 times too wide.
- Clips are a floor: without it, few clients that happen to have one rate would have an interval of
  no width.

Where clients are no sample of others (the two genders, the five languages of a study),
`over_clients` is False: what is left to chance is the clips.

Percentiles over n clients or clips are too narrow where n is small. Their distances from the rate
are therefore multiplied by sqrt(n / (n - 1)) * t / 1.96, with t the 97.5 % point of Student's
distribution with n - 1 degrees of freedom: the correction of Hesterberg 2015, "What Teachers Should
Know About the Bootstrap", made to the distances instead of the percentiles. It is 1.05 with 40
clips and 1.08 with 24 clients, but 9.2 with two clients, for two say next to nothing about a third.

A bootstrap cannot see what never happened: without any error the interval has no width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsim.errors import FedsimError

RESAMPLES = 2_000
MOST_CLIPS = 1_000_000
_BATCH = 2**20  # units drawn at a time, 8 bytes each
_Z95 = 1.959964  # 97.5 % of a normal distribution lies below
_Z80 = 0.841621  # 80 % of it

Verdict = Literal["better", "worse", "not distinguishable"]


@dataclass(frozen=True)
class ClipCounts:
    """Counts of one client's test clips for one model: `wrong[i]` errors of `of[i]`.

    Word errors of words; for a classifier 0 or 1 of 1. A clip without words may have errors.
    """

    client: str
    wrong: np.ndarray
    """int64 (clips,)"""
    of: np.ndarray
    """int64 (clips,)"""

    def __post_init__(self) -> None:
        if self.wrong.ndim != 1 or self.wrong.shape != self.of.shape:
            shapes = f"{self.wrong.shape} and {self.of.shape}"
            raise ValueError(f"counts of client {self.client!r} have shapes {shapes}")
        if (self.wrong < 0).any() or (self.of < 0).any():
            raise ValueError(f"counts of client {self.client!r} include a negative one")


@dataclass(frozen=True)
class Interval:
    """A rate and its 95 % interval: 0.12 is 12 %. NaN where nothing was counted; the bounds alone
    are NaN where a single clip was."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """How the rates of two models differ on the same clips: the first's less the second's.

    In units of a rate: -0.03 says that the first model makes three errors less in a hundred words.
    """

    difference: float
    low: float
    """Lower end of the 95 % interval of the difference."""
    high: float
    verdict: Verdict
    """Of the first model; `better` has fewer errors, and an interval that lies below 0."""
    more_clips: int | None
    """How many more clips would settle it in four studies of five, see `compare`."""

    def sentence(self, first: str, second: str, unit: str) -> str:
        """Return the verdict in words: names of the models, and what is counted, such as `WER`."""
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
        digits = 1 if near >= 0.0005 else 2  # an end that is not 0 should not read 0.0
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
) -> Interval:
    """Return the corpus rate of all clients' clips and its 95 % interval.

    Args:
        counts: of each client, in any order; a client without clips is as good as absent.
        rng: the only source of chance: generators of one state give one interval.
        over_clients: whether the clients are a sample, and others might have been drawn.
        resamples: how many at each level.

    Raises:
        FedsimError: if a client is there twice.
    """
    clients = _by_client(counts)
    wrong, of = [c.wrong for c in clients], [c.of for c in clients]
    found = _interval(wrong, of, rng, resamples, over_clients)
    return Interval(found.value, max(found.low, 0.0), found.high)


def compare(
    first: Sequence[ClipCounts],
    second: Sequence[ClipCounts],
    rng: np.random.Generator,
    *,
    over_clients: bool = True,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Return the difference of two models' rates on the same clips, and whether it is one.

    The interval is of the paired difference: every resample draws the same clips for both models.

    `more_clips` takes the observed difference d for the true one, and the distance h from d to the
    end of its interval beyond 0 to shrink as 1 / sqrt(clips), with clips of further clients, as
    many a client as now (or of the one client). Then four studies of five settle it (Student's t
    taken for normal: the sample size for a power of 80 %) with

        clips * (h / |d| * (1.96 + 0.84) / 1.96) ** 2

    clips, of which `clips` are there. It is None if the verdict is not open, if d is 0 or unknown,
    and if more than a million would be needed.

    Args:
        first: counts of one model for each client.
        second: of the other, for the same clients and the same clips in the same order.
        rng: the only source of chance: generators of one state give one result.
        over_clients: whether the clients are a sample, and others might have been drawn.
        resamples: how many at each level.

    Raises:
        FedsimError: if a client is there twice, or clients or clips do not match.
    """
    pairs = _pairs(first, second)
    less = [one.wrong - two.wrong for one, two in pairs]
    found = _interval(less, [one.of for one, _ in pairs], rng, resamples, over_clients)
    verdict: Verdict = "not distinguishable"
    if found.high < 0:
        verdict = "better"
    elif found.low > 0:
        verdict = "worse"
    clips = sum(len(wrong) for wrong in less)
    more = _more_clips(found, clips) if verdict == "not distinguishable" else None
    return Comparison(found.value, found.low, found.high, verdict, more)


def widened(value: float, drawn: np.ndarray, units: int) -> tuple[float, float]:
    """Return the ends of a value's 95 % interval: percentiles of its resamples, set further apart.

    Args:
        value: what the whole sample says.
        drawn: what each resample says, (resamples,).
        units: how many units were drawn anew, at least two; few of them widen the interval.
    """
    from scipy.special import stdtrit

    low, high = np.percentile(drawn, [2.5, 97.5])
    widen = math.sqrt(units / (units - 1)) * float(stdtrit(units - 1, 0.975)) / _Z95
    return float(value + widen * (low - value)), float(value + widen * (high - value))


def flip_share(plans: np.ndarray, base: np.ndarray) -> float:
    """Return the share of layers whose bit depth differs from the base plan's, over all resamples.

    Args:
        plans: bit depths (resamples, layers).
        base: bit depths (layers,).
    """
    _check_rows(plans, base)
    return float(np.mean(plans != base))


def rank_correlation(sensitivities: np.ndarray, base: np.ndarray) -> float:
    """Return the mean of Spearman's correlation of each resample's sensitivities with the base's.

    1 says that every resample orders the layers as the base does. NaN if all layers of any of them
    are equal, which is no order.

    Args:
        sensitivities: (resamples, layers), in any unit.
        base: (layers,).
    """
    from scipy.stats import spearmanr

    _check_rows(sensitivities, base)
    if any(np.ptp(row) == 0 for row in (base, *sensitivities)):
        return math.nan
    return float(np.mean([spearmanr(row, base).statistic for row in sensitivities]))


def _interval(
    wrong: Sequence[np.ndarray],
    of: Sequence[np.ndarray],
    rng: np.random.Generator,
    resamples: int,
    over_clients: bool,
) -> Interval:
    """Return sum(wrong) / sum(of) and its interval; one pair of arrays (clips,) a client."""
    words = sum(int(counted.sum()) for counted in of)
    if words == 0:
        return Interval(math.nan, math.nan, math.nan)
    levels = [(np.concatenate(wrong), np.concatenate(of))]
    if len(of) > 1 and over_clients:
        top, bottom = (np.array([clips.sum() for clips in part]) for part in (wrong, of))
        levels.append((top, bottom))
    bounds = [_bounds(*level, rng, resamples) for level in levels if len(level[0]) > 1]
    low = min((low for low, _ in bounds), default=math.nan)
    high = max((high for _, high in bounds), default=math.nan)
    return Interval(sum(int(w.sum()) for w in wrong) / words, low, high)


def _bounds(
    top: np.ndarray, bottom: np.ndarray, rng: np.random.Generator, resamples: int
) -> tuple[float, float]:
    """Return the ends of the interval of sum(top) / sum(bottom), where units are left to chance.

    Resamples without any word are left out. Memory does not grow with the number of resamples.

    Args:
        top: errors (units,), at least two units.
        bottom: words (units,).
        rng: draws the units.
        resamples: how many.
    """
    # scipy.stats.bootstrap has the same percentiles, but one resample without words makes both its
    # ends NaN.
    units, rates = len(top), []
    batch = max(1, _BATCH // units)
    for done in range(0, resamples, batch):
        drawn = rng.integers(units, size=(min(batch, resamples - done), units))
        above, below = top[drawn].sum(axis=1), bottom[drawn].sum(axis=1)
        rates.append(above[below > 0] / below[below > 0])
    return widened(float(top.sum() / bottom.sum()), np.concatenate(rates), units)


def _more_clips(found: Interval, clips: int) -> int | None:
    size = abs(found.value)
    beyond = found.value - found.low if found.value > 0 else found.high - found.value
    if not size > 0:
        return None
    more = clips * (beyond / size * (_Z95 + _Z80) / _Z95) ** 2 - clips
    return math.ceil(more) if more <= MOST_CLIPS else None


def _by_client(counts: Sequence[ClipCounts]) -> list[ClipCounts]:
    """Return the counts of clients that have clips, in the order of the clients' names."""
    known: set[str] = set()
    for client in (c.client for c in counts):
        if client in known:
            raise FedsimError(f"client {client!r} is counted twice: give each client once")
        known.add(client)
    return sorted((c for c in counts if len(c.of)), key=lambda c: c.client)


def _pairs(
    first: Sequence[ClipCounts], second: Sequence[ClipCounts]
) -> list[tuple[ClipCounts, ClipCounts]]:
    """Return both models' counts of each client.

    Raises:
        FedsimError: if clients or clips do not match.
    """
    ours, theirs = _by_client(first), _by_client(second)
    apart = {c.client for c in ours} ^ {c.client for c in theirs}
    if apart:
        raise FedsimError(
            f"client {min(apart)!r} has clips for one of the two models only: compare models on the"
            " same clients"
        )
    pairs = list(zip(ours, theirs, strict=True))
    for one, two in pairs:
        if not np.array_equal(one.of, two.of):
            raise FedsimError(
                f"the clips of client {one.client!r} differ between the two models"
                f" ({len(one.of)} clips with {one.of.sum()} in all against {len(two.of)} with"
                f" {two.of.sum()}): compare models on the same clips in the same order"
            )
    return pairs


def _check_rows(rows: np.ndarray, base: np.ndarray) -> None:
    if rows.ndim != 2 or base.ndim != 1 or rows.shape[1] != len(base) or rows.size == 0:
        raise ValueError(f"shapes {rows.shape} and {base.shape} are not (R, L) and (L,)")


def _points(value: float, digits: int = 1) -> str:
    return f"{100 * value:z.{digits}f}".replace("-", "−")


def _two_digits(count: int) -> int:
    return int(float(f"{count:.1e}"))
