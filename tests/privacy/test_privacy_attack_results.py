"""Verdicts of findings, by hand; resampling against scikit-learn, scipy and brute force."""

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from fedsim.privacy.attacks.resampling import (
    clopper_pearson,
    concordance,
    equal_error_rate,
    speaker_interval,
)
from fedsim.privacy.attacks.result import EER, Finding


def finding(figure, value, low, high, chance=0.5, note="why"):
    return Finding("attribute", "gender", "ranks", figure, value, low, high, chance, 1200, note)


def test_verdict():
    for figure, low, high, verdict in (
        ("AUC", 0.51, 0.61, "gives away"),
        ("AUC", 0.49, 0.61, "not distinguishable"),
        ("AUC", 0.5, 0.61, "not distinguishable"),
        ("AUC", 0.39, 0.49, "below chance"),
        (EER, 0.39, 0.49, "gives away"),
        (EER, 0.39, 0.5, "not distinguishable"),
        (EER, 0.51, 0.61, "below chance"),
        ("AUC", None, None, "not measured"),
    ):
        value = None if low is None else (low + high) / 2
        assert finding(figure, value, low, high).verdict == verdict


def test_sentences():
    assert finding("AUC", 0.8, 0.75, 0.8512).sentence() == (
        "ranks gives away gender: AUC 0.800 (95 % interval 0.750 to 0.851, chance 0.500, n = 1,200)"
    )
    assert (
        finding("AUC", 0.5, 0.45, 0.55)
        .sentence()
        .startswith(
            "ranks: gender is not distinguishable from chance: AUC 0.500 (95 % interval 0.450"
        )
    )
    assert (
        finding("AUC", 0.4, 0.35, 0.45)
        .sentence()
        .startswith("ranks: the attack on gender does worse than chance: AUC 0.400")
    )
    assert finding("AUC", None, None, None).sentence() == "ranks: no AUC for gender: why"


def weighted_cases(seed):
    rng = np.random.default_rng(seed)
    positive, negative = rng.integers(3, 9, 30), rng.integers(0, 8, 50)  # many ties
    weights = rng.integers(0, 4, (6, 80)).astype(float)
    return positive, negative, weights[:, :30], weights[:, 30:]


def test_concordance_is_the_auc_of_scikit_learn():
    positive, negative, ours, theirs = weighted_cases(0)
    right, pairs = concordance(positive, negative, ours, theirs)
    expected = [
        roc_auc_score(
            np.arange(80) < 30, np.r_[positive, negative], sample_weight=np.r_[one, other]
        )
        for one, other in zip(ours, theirs, strict=True)
    ]
    np.testing.assert_allclose(right / pairs, expected)


def test_equal_error_rate_by_brute_force():
    positive, negative, ours, theirs = weighted_cases(1)
    expected = []
    for one, other in zip(ours, theirs, strict=True):
        errors = [
            (np.average(positive < t, weights=one), np.average(negative >= t, weights=other))
            for t in sorted(positive)
        ]
        expected.append(np.mean(min(errors, key=lambda e: abs(e[0] - e[1]))))
    np.testing.assert_allclose(equal_error_rate(positive, negative, ours, theirs), expected)


def test_equal_error_rate_of_two_normal_distributions():
    rng = np.random.default_rng(2)
    ones = np.ones((1, 20_000))
    found = equal_error_rate(rng.normal(1.5, 1, 20_000), rng.normal(0, 1, 20_000), ones, ones)
    assert found[0] == pytest.approx(scipy.stats.norm.cdf(-0.75), abs=0.01)


def test_clopper_pearson_is_that_of_scipy():
    for hits, of in ((0, 20), (3, 20), (20, 20)):
        exact = scipy.stats.binomtest(hits, of).proportion_ci(method="exact")
        assert clopper_pearson(hits, of) == pytest.approx((exact.low, exact.high))


def means(values):
    return lambda weights: weights @ values / weights.sum(axis=1)


def test_interval_of_a_mean_is_students():
    """For a mean, the widened percentiles are nearly Student's interval."""
    values = np.random.default_rng(3).uniform(0, 1, 30)
    found = speaker_interval(means(values), 30, np.random.default_rng(4), resamples=20_000)
    exact = scipy.stats.t.interval(0.95, 29, values.mean(), scipy.stats.sem(values))
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(exact, abs=0.01)


def test_batches_and_spread():
    values = np.random.default_rng(5).uniform(0.4, 0.6, 30)
    first, again, batched, wide = (
        speaker_interval(means(values), 30, np.random.default_rng(6), **settings)
        for settings in ({}, {}, {"cases": 2**20}, {"spread": 2})
    )
    assert first == again == batched
    assert wide.high - wide.value == pytest.approx(2 * (first.high - first.value))
    assert wide.value - wide.low == pytest.approx(2 * (first.value - first.low))


def test_an_interval_is_of_speakers_not_of_cases():
    """Ten cases of each speaker, all alike, say no more than one."""
    rng = np.random.default_rng(7)
    score, kind = rng.normal(size=40), np.arange(40) % 2 == 0

    def auc(cases):
        scores, kinds = np.repeat(score, cases), np.repeat(kind, cases)

        def figure(weights):
            each = np.repeat(weights, cases, axis=1)
            right, pairs = concordance(
                scores[kinds], scores[~kinds], each[:, kinds], each[:, ~kinds]
            )
            return right / pairs

        return figure

    one, ten = (speaker_interval(auc(n), 40, np.random.default_rng(8)) for n in (1, 10))
    assert (ten.value, ten.low, ten.high) == pytest.approx((one.value, one.low, one.high))


def test_resamples_without_a_figure_are_left_out():
    def figure(weights):
        return np.where(weights[:, 0] > 0, 0.25, np.nan)

    found = speaker_interval(figure, 10, np.random.default_rng(9))
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
