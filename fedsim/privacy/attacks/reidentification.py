"""Re-identification: which release of a later session is of the same speaker.

The server has one release of every speaker from a first session and one from a second. It learns,
from speakers whose two releases it can match, which differences between releases are a speaker's
own and which are the session's, and compares releases by a distance that counts the former only.
The speakers whose distances are judged are never among those it learned from.

Speakers whose releases are one, the mean of their group, are a cluster: all of it is learned from,
or all of it is judged, and it is drawn as one. Otherwise the group's mean that is judged would have
been learned, and few means would pass for many speakers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fedsim.base.statistics import Interval
from fedsim.errors import FedsimError
from fedsim.privacy.attacks.covariance import shrunken_covariance
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
to find. Speakers that were learned from cannot fill the gallery: a distance fitted to them sets
them apart from everybody, and noise is re-identified up to 1.7 times as often as by guessing (60
speakers, 100 features)."""
FEWEST_SPEAKERS = 20
_DIRECTIONS = (4, 16, 64)

_Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Releases of the first and the second session, (m, d) each -> distances, see `_Half`."""


@dataclass(frozen=True)
class _Half:
    """Distances between held-out speakers."""

    cluster: np.ndarray
    """Of each speaker, int64 (m,)."""
    distances: np.ndarray
    """Of the probes (rows) from the enrolled (columns), float64 (m, m)."""
    others: tuple[np.ndarray, np.ndarray]
    """Rows and columns of the pairs of two speakers, the farthest first: sorted once, not for each
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

    - `rank-1` is the share of probes whose nearest release of the first session is the same
      speaker's. The gallery holds half the speakers; chance is one over its size. Speakers that are
      equally near share the hit. Its interval is the wider of bootstrap and Clopper-Pearson.
    - `AUC` and `EER` are of verification: telling pairs of one speaker from pairs of two by their
      distance. EER is where as many of the former are refused as of the latter are taken.

    The distance is chosen by its AUC, in a cross-validation within the half that it is learned
    from. Results do not depend on the order of the speakers.

    Intervals are of resampled clusters of speakers, all of whose releases go with them. They are
    made no wider for the cross-validation: those of noise from 40 to 400 speakers held chance in 90
    to 99 % of cases, 95 % on the average.

    Args:
        first: releases of the first session (enrolment), (n, d).
        second: of the second (probe), (n, d), the same speakers in the same order.
        speakers: their names, (n,).
        rng: the only source of chance: generators of one state give one result.
        release: what the clients sent.
        clusters: the cluster of each, (n,), whose members sent the same; None: each sent its own.
        resamples: how many.

    Raises:
        FedsimError: if a speaker is there twice, there are fewer than 20 clusters, or a number is
            not finite.
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
        note = "all releases are the same, so nobody can be told from another"
        found = {figure: Interval(chance, chance, chance) for figure, chance in chances.items()}
    else:
        halves, chosen = _judge(first, second, of, rng)
        gallery = f"gallery of {len(order) // FOLDS:,} speakers"
        if independent < len(order):
            gallery += f" in {independent // FOLDS:,} groups, whose members sent the same"
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
    """Return the places of the speakers in the order of their names."""
    names, count = np.unique(np.asarray(speakers), return_counts=True)
    if (count > 1).any():
        twice = str(names[count.argmax()])
        raise FedsimError(
            f"speaker {twice!r} is there twice: give one release a session for each speaker"
        )
    return np.argsort(np.asarray(speakers))


def _numbered(clusters: np.ndarray) -> np.ndarray:
    """Return clusters as numbers from 0, int64 (n,), in the order in which they first come."""
    _, first, of = np.unique(clusters, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[of]


def _check_enough(clusters: int, speakers: int) -> None:
    if clusters < FEWEST_SPEAKERS:
        there = f"there are {clusters}"
        if clusters < speakers:
            there = f"{speakers} speakers are in {clusters} groups, whose members send the same"
        raise FedsimError(
            f"re-identification needs {FEWEST_SPEAKERS} speakers with two sessions, of which half"
            f" are learned from, but {there}; add speakers"
        )


def _judge(
    first: np.ndarray, second: np.ndarray, of: np.ndarray, rng: np.random.Generator
) -> tuple[list[_Half], dict[str, int]]:
    """Return the distances within each half, learned from the other, and which were chosen.

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
    """Yield the rows to learn from and those to judge: of different clusters."""
    from sklearn.model_selection import KFold

    present = np.unique(of[rows])
    for _, held_out in KFold(FOLDS, shuffle=True, random_state=random_state(rng)).split(present):
        judged = np.isin(of[rows], present[held_out])
        yield rows[~judged], rows[judged]


def _half(place: np.ndarray, of: np.ndarray, distances: np.ndarray) -> _Half:
    rows, columns = np.nonzero(~np.eye(len(place), dtype=bool))
    order = np.argsort(-distances[rows, columns], kind="stable")
    return _Half(of[place], distances, (rows[order], columns[order]))


def _learned(
    first: np.ndarray, second: np.ndarray, of: np.ndarray, rows: np.ndarray
) -> dict[str, _Distance]:
    """Return the spaces in which releases are compared, learned from the speakers of these rows.

    One speaker of a cluster is enough: copies would pass for a larger sample.

    - Standardised: each feature by its mean and deviation in its session.
    - Whitened: differences between the sessions of a speaker are then made as large in every
      direction.
    - Discriminant: of the whitened space the directions in which speakers differ most. This is
      linear discriminant analysis with a shrunken covariance within speakers; scikit-learn's own
      would shrink the covariance of each speaker's two releases by itself.

    Each by Euclidean distance, and by angle.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    rows = rows[np.unique(of[rows], return_index=True)[1]]
    first, second = first[rows], second[rows]
    scalers = StandardScaler().fit(first), StandardScaler().fit(second)
    ours, theirs = scalers[0].transform(first), scalers[1].transform(second)
    size, axes = np.linalg.eigh(shrunken_covariance(ours - theirs))
    whitening = axes / np.sqrt(size)
    speakers = (ours + theirs) @ whitening / 2
    most = min(len(speakers) - 1, speakers.shape[1])
    spread = PCA(most, svd_solver="full").fit(speakers).components_.T
    matrices = {"standardised": np.eye(first.shape[1]), "whitened": whitening}
    for k in _DIRECTIONS:
        if k < most:
            matrices[f"{k} discriminant directions"] = whitening @ spread[:, :k]
    return {
        f"{name}{how}": partial(_distances, scalers, matrix, by_angle)
        for name, matrix in matrices.items()
        for how, by_angle in ((", Euclidean", False), (", by angle", True))
    }


def _distances(
    scalers: tuple[Any, Any],
    matrix: np.ndarray,
    by_angle: bool,
    first: np.ndarray,
    second: np.ndarray,
) -> np.ndarray:
    """Return the distances of the probes from the enrolled, (m, m), in a learned space."""
    from scipy.spatial.distance import cdist
    from sklearn.preprocessing import normalize

    enrolled, probes = (
        scaler.transform(part) @ matrix
        for scaler, part in zip(scalers, (first, second), strict=True)
    )
    if by_angle:
        enrolled, probes = normalize(enrolled), normalize(probes)
    # Equal releases must be equally near: rounding errors of the product must not decide.
    return np.round(cdist(probes, enrolled), 9)


def _rank_1(halves: Sequence[_Half], weights: np.ndarray) -> np.ndarray:
    """Return the share of probes found under each row of weights of clusters (b, g): (b,)."""
    found, probes = np.zeros(len(weights)), np.zeros(len(weights))
    for half in halves:
        own = weights[:, half.cluster]
        nearest = half.distances == half.distances.min(axis=1, keepdims=True)
        found += own @ (nearest.diagonal() / nearest.sum(axis=1))
        probes += own.sum(axis=1)
    return found / probes


def _auc(halves: Sequence[_Half], weights: np.ndarray) -> np.ndarray:
    """Return the AUC of verification, from pairs of one half: (b,)."""
    right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for half in halves:
        found = concordance(*_pairs(half, weights))
        right, pairs = right + found[0], pairs + found[1]
    return ratio(right, pairs)


def _eer(halves: Sequence[_Half], weights: np.ndarray) -> np.ndarray:
    """Return the mean equal error rate of the halves, whose thresholds differ: (b,)."""
    rates = [equal_error_rate(*_pairs(half, weights)) for half in halves]
    return np.mean(rates, axis=0)


def _pairs(
    half: _Half, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the scores of pairs of one speaker (m,) and of two (m * (m - 1),), and their weights.

    A pair of two weighs the product of their weights; of one cluster, which are drawn together, its
    weight. Copies of a cluster that is drawn twice make no pairs of two.
    """
    own = weights[:, half.cluster]
    rows, columns = half.others
    is_one = half.cluster[rows] == half.cluster[columns]
    both = own[:, rows] * np.where(is_one, 1.0, own[:, columns])
    return -half.distances.diagonal(), -half.distances[rows, columns], own, both
