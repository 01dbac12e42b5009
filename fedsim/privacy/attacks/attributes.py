"""Attribute inference: gender, accent or language of a speaker, from the releases of its client.

The server is assumed to know the attribute of other speakers, and to train a classifier on their
releases. Cross-validation is nested: the outer loop holds out speakers for judging, the inner loop
chooses the classifier on the training speakers only (Cawley and Talbot 2010, "On Over-fitting in
Model Selection"). No speaker is ever on both sides, so recognizing speakers does not help a
classifier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fedsim.base.statistics import Interval
from fedsim.errors import FedsimError
from fedsim.privacy.attacks.resampling import (
    CROSS_VALIDATED,
    RESAMPLES,
    concordance,
    ratio,
    speaker_interval,
)
from fedsim.privacy.attacks.result import Finding
from fedsim.privacy.attacks.vectors import carries_nothing, checked_vectors, random_state

FOLDS = 5
_INNER_FOLDS = 3


@dataclass(frozen=True)
class _Sample:
    """Releases, sorted, so that results do not depend on their original order."""

    vectors: np.ndarray
    """float64 (n, d)"""
    speaker: np.ndarray
    """Speaker of each release, int64 (n,), 0 .. S - 1."""
    label: np.ndarray
    """Class of each speaker, int64 (S,), 0 .. K - 1."""


@dataclass(frozen=True)
class _Judged:
    """Predictions for releases of speakers on whom the classifier was not trained."""

    probability: np.ndarray
    """Of each class, float64 (n, K)."""
    for_balance: np.ndarray
    """The class predicted for the balanced accuracy, int64 (n,)."""
    for_accuracy: np.ndarray
    """The class predicted for the accuracy, int64 (n,)."""
    fold: np.ndarray
    """The fold in which it was held out, int64 (n,)."""
    chosen: dict[str, int]
    """Classifiers that the inner loop chose for the AUC, and in how many folds."""


def infer_attribute(
    vectors: np.ndarray,
    labels: np.ndarray,
    speakers: np.ndarray,
    rng: np.random.Generator,
    *,
    attribute: str,
    release: str,
    resamples: int = RESAMPLES,
) -> tuple[Finding, ...]:
    """Return how well an attribute is inferred: AUC, balanced accuracy, accuracy, and a check.

    - `AUC` is the mean over classes of each against the rest. Only releases judged by the same
      classifier are compared: scores of two classifiers have no common scale, and pooling them puts
      the AUC of noise below one half (Forman and Scholz 2010).
    - `balanced accuracy` is the mean recall of the classes. The predicted class is the one whose
      probability is the largest multiple of its share in training.
    - `accuracy` is that of the classifier with the best accuracy in the inner loop; the other
      figures use the one with the best AUC. Chance is the share of the most frequent class.
    - `AUC, shuffled labels` repeats the whole attack with the attribute permuted among the
      speakers. A value above chance would mean that the attack succeeds without any leak.

    Intervals are over speakers. Results do not depend on the order of the releases.

    Args:
        vectors: the releases, (n, d).
        labels: the attribute of each, (n,).
        speakers: the speaker of each, (n,); a speaker may have any number of releases.
        rng: the only source of randomness.
        attribute: its name.
        release: name of the release.
        resamples: number of resamples.

    Raises:
        FedsimError: if there is only one class, a class has fewer than `FOLDS` speakers, a speaker
            is in two classes, or a number is not finite.
    """
    sample, classes = _sample(vectors, labels, speakers, attribute, release)
    shares = np.bincount(sample.label[sample.speaker]) / len(sample.speaker)
    chances = {
        "AUC": 0.5,
        "balanced accuracy": 1 / len(classes),
        "accuracy": float(shares.max()),
        "AUC, shuffled labels": 0.5,
    }
    note = (
        f"{len(sample.label):,} speakers; {100 * shares.max():.0f} % of the releases are of"
        f" {str(classes[shares.argmax()])!r}; "
    )
    if carries_nothing(sample.vectors):
        note += "all releases are the same, so nothing can be inferred from them"
        found = {figure: Interval(chance, chance, chance) for figure, chance in chances.items()}
    else:
        judged = _judge(sample, rng)
        shuffled = _Sample(sample.vectors, sample.speaker, rng.permutation(sample.label))
        is_right = judged.for_accuracy == sample.label[sample.speaker]
        figures = {
            "AUC": partial(_auc, sample, judged),
            "balanced accuracy": partial(_mean_recall, sample, judged.for_balance),
            "accuracy": partial(_share, sample, is_right),
            "AUC, shuffled labels": partial(_auc, shuffled, _judge(shuffled, rng)),
        }
        found = {
            figure: speaker_interval(
                compute,
                len(sample.label),
                rng,
                resamples=resamples,
                spread=CROSS_VALIDATED,
                cases=len(sample.speaker),
            )
            for figure, compute in figures.items()
        }
        note += "chosen: " + ", ".join(f"{c} ({k} of {FOLDS})" for c, k in judged.chosen.items())
    return tuple(
        Finding(
            attack="attribute",
            attribute=attribute,
            release=release,
            figure=figure,
            value=interval.value,
            low=interval.low,
            high=interval.high,
            chance=chances[figure],
            n=len(sample.speaker),
            note=note,
        )
        for figure, interval in found.items()
    )


def _sample(
    vectors: np.ndarray,
    labels: np.ndarray,
    speakers: np.ndarray,
    attribute: str,
    release: str,
) -> tuple[_Sample, np.ndarray]:
    """Return the sample, and the names of the classes (K,)."""
    vectors = checked_vectors(vectors, release)
    classes, label = np.unique(np.asarray(labels), return_inverse=True)
    names, speaker = np.unique(np.asarray(speakers), return_inverse=True)
    if not len(vectors) == len(label) == len(speaker):
        raise ValueError(f"{len(vectors)} releases, {len(label)} labels, {len(speaker)} speakers")
    if len(classes) < 2:
        raise FedsimError(
            f"all speakers have one {attribute} ({', '.join(map(str, classes))}), so there is"
            " nothing to infer; take speakers with two or more"
        )
    of_speaker = np.zeros(len(names), np.int64)
    of_speaker[speaker] = label
    if (of_speaker[speaker] != label).any():
        which = names[speaker[np.argmax(of_speaker[speaker] != label)]]
        raise FedsimError(
            f"speaker {str(which)!r} has releases with two values of {attribute}; give each speaker"
            " one value"
        )
    count = np.bincount(of_speaker)
    if count.min() < FOLDS:
        raise FedsimError(
            f"{attribute} {str(classes[count.argmin()])!r} has {count.min()} speakers, fewer than"
            f" the {FOLDS} folds of the cross-validation; add speakers or leave the value out"
        )
    order = np.lexsort((*vectors.T[::-1], speaker))
    return _Sample(vectors[order], speaker[order], of_speaker), classes


def _judge(sample: _Sample, rng: np.random.Generator) -> _Judged:
    """Return predictions for all speakers, each by the classifiers of its outer fold."""
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    label = sample.label[sample.speaker]
    probability = np.zeros((len(label), int(label.max()) + 1))
    for_balance, for_accuracy, fold = np.zeros((3, len(label)), np.int64)
    chosen: list[str] = []
    for number, (train, test) in enumerate(_folds(sample, np.arange(len(label)), FOLDS, rng)):
        inner = [
            (np.searchsorted(train, ours), np.searchsorted(train, theirs))
            for ours, theirs in _folds(sample, train, _INNER_FOLDS, rng)
        ]
        names, candidates = zip(
            *_candidates(min(len(ours) for ours, _ in inner), random_state(rng)), strict=True
        )
        # Features are standardised with the mean and deviation of the training speakers.
        pipeline = Pipeline([("scale", StandardScaler()), ("classifier", candidates[0])])
        search = GridSearchCV(
            pipeline,
            {"classifier": candidates},
            scoring=["roc_auc_ovr", "accuracy"],
            refit="roc_auc_ovr",
            cv=inner,
            error_score="raise",
        )
        search.fit(sample.vectors[train], label[train])
        probability[test] = search.predict_proba(sample.vectors[test])
        for_balance[test] = (probability[test] / np.bincount(label[train])).argmax(axis=1)
        surest = candidates[search.cv_results_["mean_test_accuracy"].argmax()]
        pipeline.set_params(classifier=clone(surest)).fit(sample.vectors[train], label[train])
        for_accuracy[test] = pipeline.predict(sample.vectors[test])
        fold[test] = number
        chosen.append(names[search.best_index_])
    return _Judged(probability, for_balance, for_accuracy, fold, dict(Counter(sorted(chosen))))


def _folds(
    sample: _Sample, rows: np.ndarray, folds: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows to train on and rows to judge: of different speakers, with all classes in both.

    Speakers are split, not releases. scikit-learn's StratifiedGroupKFold is greedy, and may leave a
    fold without a class that has few speakers.
    """
    from sklearn.model_selection import StratifiedKFold

    present = np.unique(sample.speaker[rows])
    split = StratifiedKFold(folds, shuffle=True, random_state=random_state(rng))
    for _, held_out in split.split(present, sample.label[present]):
        judged = np.isin(sample.speaker[rows], present[held_out])
        yield rows[~judged], rows[judged]


def _candidates(rows: int, seed: int) -> list[tuple[str, Any]]:
    """Return the classifiers among which the inner loop chooses.

    `rows` is the minimum number of releases that one is trained on. Boosted trees with few leaves
    were as good as a random forest, and four times as fast.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    boosted = HistGradientBoostingClassifier(
        max_iter=50, max_leaf_nodes=4, min_samples_leaf=10, early_stopping=False, random_state=seed
    )
    regressions = [LogisticRegression(C=c, max_iter=1_000) for c in (0.001, 0.03, 1.0)]
    neighbours = [KNeighborsClassifier(k) for k in sorted({3, max(3, round(rows**0.5))})]
    return [
        *(("logistic regression", r) for r in regressions),
        ("boosted trees", boosted),
        *(("nearest neighbours", k) for k in neighbours),
    ]


def _auc(sample: _Sample, judged: _Judged, weights: np.ndarray) -> np.ndarray:
    """Return the mean AUC of the classes under each row of speaker weights (b, S): (b,)."""
    label, of_rows = sample.label[sample.speaker], weights[:, sample.speaker]
    areas = []
    for k in range(judged.probability.shape[1]):
        score, is_k = judged.probability[:, k], label == k
        right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for fold in range(FOLDS):
            yes, no = ((judged.fold == fold) & one for one in (is_k, ~is_k))
            found = concordance(score[yes], score[no], of_rows[:, yes], of_rows[:, no])
            right, pairs = right + found[0], pairs + found[1]
        areas.append(ratio(right, pairs))
    return np.mean(areas, axis=0)


def _mean_recall(sample: _Sample, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean recall of the classes for predictions (n,): (b,)."""
    recalls = [
        _share(sample, predicted == k, weights * (sample.label == k))
        for k in range(int(sample.label.max()) + 1)
    ]
    return np.mean(recalls, axis=0)


def _share(sample: _Sample, is_hit: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the share of releases that are hits, bool (n,), under each row of weights: (b,)."""
    hits, of = np.bincount(sample.speaker, is_hit), np.bincount(sample.speaker)
    return ratio(weights @ hits, weights @ of)
