"""Membership inference against the closed forms of Gaussians, and what it refuses to say."""

import numpy as np
import pytest
from scipy.stats import chi2, kstest, multivariate_normal, norm

from fedsim.errors import FedsimError
from fedsim.privacy.attacks.membership import (
    judge_membership,
    likelihood_ratio,
    unlikeness,
    world_scores,
)

AUC, ONE, TENTH = "AUC", "TPR at 1 % FPR", "TPR at 0.1 % FPR"


def judge(members, others, clients=None, seed=0, resamples=400):
    """Judge scores; each clip is a client's of its own unless clients are given."""
    count = len(members) + len(others)
    found = judge_membership(
        np.r_[members, others],
        np.arange(count) < len(members),
        np.arange(count) if clients is None else clients,
        np.random.default_rng(seed),
        release="medians",
        resamples=resamples,
    )
    return {finding.figure: finding for finding in found}


def test_a_gaussian_shift_against_its_closed_form():
    for shift in (0.0, 1.0, 2.5):
        rng = np.random.default_rng(1)
        found = judge(rng.normal(shift, 1, 100_000), rng.normal(0, 1, 100_000), resamples=2)
        expected = {AUC: norm.cdf(shift / 2**0.5)}
        expected |= {
            f: norm.sf(norm.isf(rate) - shift) for f, rate in ((ONE, 0.01), (TENTH, 0.001))
        }
        for figure, value in expected.items():
            assert found[figure].value == pytest.approx(value, rel=0.15, abs=0.001)


def test_noise_has_the_false_positive_rate_that_was_asked_for():
    """The last point of a ROC curve below the rate would give twice as much."""
    rng = np.random.default_rng(2)
    rounds = [judge(*rng.normal(size=(2, 1000)), resamples=2)[TENTH].value for _ in range(200)]
    assert np.mean(rounds) == pytest.approx(1 / 1001, abs=3 * np.std(rounds) / 200**0.5)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_intervals_hold_the_closed_form_in_95_of_100(shift):
    rng = np.random.default_rng(3)
    truth = {AUC: norm.cdf(shift / 2**0.5), ONE: norm.sf(norm.isf(0.01) - shift)}
    held = {figure: [] for figure in truth}
    for seed in range(50):
        found = judge(rng.normal(shift, 1, 500), rng.normal(0, 1, 500), seed=seed, resamples=200)
        for figure, value in truth.items():
            held[figure].append(found[figure].low <= value <= found[figure].high)
    assert 0.9 <= np.mean(held[AUC]) < 1
    assert np.mean(held[ONE]) >= 0.9


def test_a_figure_that_the_sample_is_too_small_for_is_refused():
    scores = np.random.default_rng(4).normal(size=(2, 999))
    found = judge(*scores)
    assert found[TENTH].value is found[TENTH].low is found[TENTH].high is None
    assert "1,000 non-members are needed" in found[TENTH].note
    assert found[TENTH].verdict == "not measured"
    assert found[ONE].value is not None
    enough = judge(scores[0], np.r_[scores[1], 0.0])[TENTH]
    assert enough.value is not None
    assert "with fewer than 5,000 non-members the interval is too narrow" in enough.note
    few = judge(scores[0][:50], scores[1][:99])
    assert (few[ONE].value, few[AUC].value is None) == (None, False)
    assert "100 non-members are needed" in few[ONE].note
    assert all(f.value is None for f in judge(scores[0][:9], scores[1]).values())
    one_client = judge(*scores, clients=np.zeros(1998))
    assert all("two clients" in f.note for f in one_client.values())


def test_clips_of_one_client_do_not_pass_for_many_clients():
    """Twenty clients whose clips all look alike are twenty cases, not four hundred."""
    rng = np.random.default_rng(5)
    clients = np.repeat(np.arange(20), 20)
    scores = rng.normal(size=20)[clients] + 0.1 * rng.normal(size=400)
    own, grouped = (
        judge(scores[:200], scores[200:], clients=c)[AUC] for c in (np.arange(400), clients)
    )
    assert own.value == grouped.value
    assert grouped.high - grouped.low > 3 * (own.high - own.low)


def test_the_order_of_clips_does_not_matter():
    rng = np.random.default_rng(6)
    scores, member, clients = rng.normal(size=300), np.arange(300) < 120, np.arange(300) % 30
    order = rng.permutation(300)

    def run(rows):
        return judge_membership(
            scores[rows], member[rows], clients[rows], np.random.default_rng(7), release="medians"
        )

    assert run(np.arange(300)) == run(order)


def test_equal_scores_say_nothing():
    found = judge(np.zeros(200), np.zeros(1000))
    assert found[AUC].value == 0.5
    assert found[ONE].value == 0
    assert all(f.verdict == "not distinguishable" for f in found.values())


def worlds(shift, count, seed, covariance):
    rng = np.random.default_rng(seed)
    return rng.multivariate_normal(shift, covariance, count)


COVARIANCE = np.array([[4.0, 1.5, 0.0], [1.5, 1.0, 0.0], [0.0, 0.0, 0.01]])
SHIFT = np.array([1.0, -0.5, 0.05])


def test_the_likelihood_ratio_is_that_of_the_true_gaussians():
    inside, outside = (worlds(s, 20_000, i, COVARIANCE) for i, s in enumerate((SHIFT, 0 * SHIFT)))
    seen = worlds(SHIFT / 2, 50, 3, COVARIANCE)
    expected = multivariate_normal(SHIFT, COVARIANCE).logpdf(seen) - multivariate_normal(
        0 * SHIFT, COVARIANCE
    ).logpdf(seen)
    np.testing.assert_allclose(likelihood_ratio(seen, inside, outside), expected, atol=0.15)


def test_the_offline_attack_measures_how_unusual_a_release_is():
    outside, seen = (worlds(0 * SHIFT, n, s, COVARIANCE) for n, s in ((20_000, 1), (500, 2)))
    assert kstest(unlikeness(seen, outside), chi2(3).cdf).pvalue > 0.01
    assert unlikeness(seen + 5 * SHIFT, outside).mean() > 20


def test_worlds_score_each_other():
    """Judged by other worlds, the planted shift is found as often as its closed form says."""
    inside, outside = (worlds(s, 2000, i, COVARIANCE) for i, s in enumerate((SHIFT, 0 * SHIFT)))
    found = judge(*world_scores(inside, outside, np.random.default_rng(0)))
    distance = np.sqrt(SHIFT @ np.linalg.solve(COVARIANCE, SHIFT))
    assert found[AUC].value == pytest.approx(norm.cdf(distance / 2**0.5), abs=0.02)
    assert found[ONE].value == pytest.approx(norm.sf(norm.isf(0.01) - distance), abs=0.04)


def test_few_worlds_of_noise_find_no_member():
    """More features than worlds: scored by themselves too, members would be recognized."""
    rng = np.random.default_rng(8)
    scores = [
        world_scores(*rng.normal(size=(2, 12, 40)), np.random.default_rng(t)) for t in range(12)
    ]
    members, others = (np.concatenate(part) for part in zip(*scores, strict=True))
    found = judge(members, others, clients=np.tile(np.repeat(np.arange(12), 12), 2))
    assert found[AUC].verdict == found[ONE].verdict == "not distinguishable"
    inside, outside = rng.normal(size=(2, 12, 40))
    own = [likelihood_ratio(part, inside, outside) for part in (inside, outside)]
    assert np.mean(own[0][:, None] > own[1]) > 0.95


def test_a_feature_that_never_varies_says_nothing_and_a_certain_one_everything():
    rng = np.random.default_rng(9)
    noise = rng.normal(size=(2, 10, 1))
    still = [np.c_[part, np.full(10, 6.0)] for part in noise]
    seen = np.array([[0.0, 6.0], [0.0, 9.0]])
    ratio = likelihood_ratio(seen, *still)
    assert ratio[0] == pytest.approx(ratio[1])
    certain = [np.full((10, 1), bits) for bits in (4.0, 5.0)]
    assert likelihood_ratio(np.array([[4.0]]), *certain)[0] > 100
    assert likelihood_ratio(np.array([[5.0]]), *certain)[0] < -100


def test_refusals():
    rng = np.random.default_rng(10)
    with pytest.raises(
        FedsimError, match=r"needs 8 worlds of each kind, and there are 7; compute more"
    ):
        likelihood_ratio(rng.normal(size=(1, 2)), *(rng.normal(size=(n, 2)) for n in (7, 9)))
    world_scores(*rng.normal(size=(2, 11, 3)), rng)
    for few in (3, 10):
        with pytest.raises(FedsimError, match=rf"11 of each kind.* there are {few}; compute more"):
            world_scores(*rng.normal(size=(2, few, 3)), rng)
    scores = rng.normal(size=20)
    scores[4] = np.nan
    with pytest.raises(FedsimError, match=r"row 4 that is not finite"):
        judge(scores[:10], scores[10:])
