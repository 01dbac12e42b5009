"""Re-identification: which release of a later session comes from the same speaker.

The server has one release of every speaker from a first session and one from a second. From
speakers whose two releases it can match, it learns which differences between releases come from
the speaker and which from the session, and a distance that counts only the former. This distance
is judged on other speakers.

Speakers who share a release, the mean of their group, form a cluster. A cluster is either learned
from or judged, and resampled, as a whole: otherwise the distance would be judged on means that it
was learned from, and a few means would count as many speakers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fedsim.base.statistics import Interval
from fedsim.errors import FedsimError
from fedsim.privacy.attacks.distances import Distance, learned_distances
from fedsim.privacy.attacks.resampling import (
    RESAMPLES,
    clopper_pearson,
    concordance,
    equal_error_rate,
    ratio,
    speaker_interval,
)
from fedsim.privacy.attacks.result import EER, Finding
from fedsim.privacy.attacks.vectors import carries_nothing, checked_vectors, random_state

FOLDS = 2
"""Halves: a probe is compared with the speakers of its own half, so more folds would make it easier
to find. Speakers of the other half cannot fill the gallery: a distance fitted to them separates
them from all others, and noise would be re-identified up to 1.7 times as often as by guessing (60
speakers, 100 features)."""
MIN_SPEAKERS = 20


@dataclass(frozen=True)
class _Half:
    """Distances between held-out speakers."""

    cluster: np.ndarray
    """Of each speaker, int64 (m,)."""
    distances: np.ndarray
    """Of the probes (rows) from the enrolled (columns), float64 (m, m)."""
    others: tuple[np.ndarray, np.ndarray]
    """Rows and columns of all pairs of two speakers, the farthest first: sorted once, not for each
    batch of resamples."""


def reidentify(
    first: np.ndarray,
    second: np.ndarray,
    speakers: np.ndarray,
    rng: np.random.Generator,
    *,
    release: str,
    clusters: np.ndarray | None = None,
    resamples: int = RESAMPLES,
) -> tuple[Finding, ...]:
    """Return how well speakers are recognized in a second session: rank-1, AUC and EER.

    - `rank-1` is the share of probes whose nearest release of the first session belongs to the same
      speaker. The gallery has half the speakers; chance is one over its size. Speakers at equal
      distance share the hit. Its interval is the wider of bootstrap and Clopper-Pearson.
    - `AUC` and `EER` measure verification: pairs of one speaker against pairs of two, by distance.
      At the EER, false rejections and false acceptances are equally frequent.

    The distance is chosen by its AUC, in a cross-validation within the half that it is learned
    from. Results do not depend on the order of the speakers.

    Intervals are over resampled clusters of speakers. They are not widened for the
    cross-validation: with noise of 40 to 400 speakers they held chance in 90 to 99 % of cases, 95 %
    on average.

    Args:
        first: releases of the first session (enrolment), (n, d).
        second: releases of the second (probe), (n, d), the same speakers in the same order.
        speakers: their names, (n,).
        rng: the only source of randomness.
        release: name of the release.
        clusters: the cluster of each speaker, (n,), whose members share a release; None where each
            has its own.
        resamples: number of resamples.

    Raises:
        FedsimError: if a speaker occurs twice, there are fewer than 20 clusters, or a number is not
            finite.
    """
    order = _order(speakers)
    of = _numbered(np.asarray(speakers if clusters is None else clusters)[order])
    independent = int(of.max()) + 1
    _check_enough(independent, len(order))
    first, second = (checked_vectors(part, release)[order] for part in (first, second))
    if first.shape != second.shape:
        raise ValueError(f"sessions have shapes {first.shape} and {second.shape}")
    chances = {"rank-1": FOLDS / len(order), "AUC": 0.5, EER: 0.5}
    if carries_nothing(np.concatenate([first, second])):
        note = "all releases are the same, so no speaker can be distinguished from another"
        found = {figure: Interval(chance, chance, chance) for figure, chance in chances.items()}
    else:
        halves, chosen = _judge(first, second, of, rng)
        gallery = f"gallery of {len(order) // FOLDS:,} speakers"
        if independent < len(order):
            gallery += f" in {independent // FOLDS:,} groups, whose members share a release"
        note = f"{gallery}; chosen: " + ", ".join(
            f"{name} ({count} of {FOLDS})" for name, count in chosen.items()
        )
        figures = {"rank-1": _rank_1, "AUC": _auc, EER: _eer}
        found = {
            figure: speaker_interval(
                partial(compute, halves),
                independent,
                rng,
                resamples=resamples,
                cases=len(order) ** 2 // FOLDS,
            )
            for figure, compute in figures.items()
        }
        rank = found["rank-1"]
        low, high = clopper_pearson(rank.value * independent, independent)
        found["rank-1"] = Interval(rank.value, min(rank.low, low), max(rank.high, high))
    return tuple(
        Finding(
            attack="re-identification",
            attribute="the speaker",
            release=release,
            figure=figure,
            value=interval.value,
            low=interval.low,
            high=interval.high,
            chance=chances[figure],
            n=independent,
            note=note,
        )
        for figure, interval in found.items()
    )


def _order(speakers: np.ndarray) -> np.ndarray:
    """Return the indices of the speakers, sorted by name."""
    names, count = np.unique(np.asarray(speakers), return_counts=True)
    if (count > 1).any():
        repeated = str(names[count.argmax()])
        raise FedsimError(
            f"speaker {repeated!r} occurs twice: give one release per speaker and session"
        )
    return np.argsort(np.asarray(speakers))


def _numbered(clusters: np.ndarray) -> np.ndarray:
    """Return clusters as numbers from 0, int64 (n,), in order of first occurrence."""
    _, first, of = np.unique(clusters, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[of]


def _check_enough(clusters: int, speakers: int) -> None:
    if clusters < MIN_SPEAKERS:
        found = f"there are {clusters}"
        if clusters < speakers:
            found = f"{speakers} speakers are in {clusters} groups, whose members share a release"
        raise FedsimError(
            f"re-identification needs {MIN_SPEAKERS} speakers with two sessions, and {found}; add"
            f" speakers"
        )


def _judge(
    first: np.ndarray, second: np.ndarray, of: np.ndarray, rng: np.random.Generator
) -> tuple[list[_Half], dict[str, int]]:
    """Return the distances within each half, learned from the other, and how often each was chosen.

    `of` is the cluster of each speaker, (n,).
    """
    halves, chosen = [], []
    for train, test in _split(of, np.arange(len(of)), rng):
        areas: defaultdict[str, float] = defaultdict(float)
        for ours, theirs in _split(of, train, rng):
            for name, distance in _learned(first, second, of, ours).items():
                half = _half(theirs, of, distance(first[theirs], second[theirs]))
                areas[name] += float(_auc([half], np.ones((1, int(of.max()) + 1)))[0])
        best = max(areas, key=lambda name: areas[name])
        distance = _learned(first, second, of, train)[best]
        halves.append(_half(test, of, distance(first[test], second[test])))
        chosen.append(best)
    return halves, dict(Counter(sorted(chosen)))


def _split(
    of: np.ndarray, rows: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows to learn from and rows to judge, never of one cluster."""
    from sklearn.model_selection import KFold

    present = np.unique(of[rows])
    for _, held_out in KFold(FOLDS, shuffle=True, random_state=random_state(rng)).split(present):
        judged = np.isin(of[rows], present[held_out])
        yield rows[~judged], rows[judged]


def _learned(
    first: np.ndarray, second: np.ndarray, of: np.ndarray, rows: np.ndarray
) -> dict[str, Distance]:
    """Return the distances learned from one speaker per cluster of these rows.

    The others of a cluster are copies, which would make the sample look larger than it is.
    """
    rows = rows[np.unique(of[rows], return_index=True)[1]]
    return learned_distances(first[rows], second[rows])


def _half(place: np.ndarray, of: np.ndarray, distances: np.ndarray) -> _Half:
    rows, columns = np.nonzero(~np.eye(len(place), dtype=bool))
    order = np.argsort(-distances[rows, columns], kind="stable")
    return _Half(of[place], distances, (rows[order], columns[order]))


def _rank_1(halves: Sequence[_Half], weights: np.ndarray) -> np.ndarray:
    """Return the share of recognized probes under each row of cluster weights (b, g): (b,)."""
    found, probes = np.zeros(len(weights)), np.zeros(len(weights))
    for half in halves:
        own = weights[:, half.cluster]
        nearest = half.distances == half.distances.min(axis=1, keepdims=True)
        found += own @ (nearest.diagonal() / nearest.sum(axis=1))
        probes += own.sum(axis=1)
    return found / probes


def _auc(halves: Sequence[_Half], weights: np.ndarray) -> np.ndarray:
    """Return the AUC of verification, over pairs within a half: (b,)."""
    right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for half in halves:
        found = concordance(*_pairs(half, weights))
        right, pairs = right + found[0], pairs + found[1]
    return ratio(right, pairs)


def _eer(halves: Sequence[_Half], weights: np.ndarray) -> np.ndarray:
    """Return the mean equal error rate of the halves, each at its own threshold: (b,)."""
    rates = [equal_error_rate(*_pairs(half, weights)) for half in halves]
    return np.mean(rates, axis=0)


def _pairs(
    half: _Half, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the scores of pairs of one speaker (m,) and of two (m * (m - 1),), and their weights.

    A pair of two clusters has the product of their weights; a pair within one cluster, which is
    drawn as a whole, has its weight. Copies of a cluster that is drawn twice make no pairs.
    """
    own = weights[:, half.cluster]
    rows, columns = half.others
    is_one = half.cluster[rows] == half.cluster[columns]
    both = own[:, rows] * np.where(is_one, 1.0, own[:, columns])
    return -half.distances.diagonal(), -half.distances[rows, columns], own, both
