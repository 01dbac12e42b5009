"""Lower bounds on epsilon: sound mechanisms pass, broken ones are caught."""

import numpy as np
import pytest
from scipy.stats import binomtest

from fedsim.errors import FedsimError
from fedsim.privacy.audit import _rates, any_noise, epsilon_lower_bound, gaussian_noise
from fedsim.privacy.noise import noise_scale, perturb

DELTA = 1e-5


def audit(mechanism, epsilon, seed, *, share=1.0, m=20, differ=None, **options):
    """Audit a mechanism with `share` of the noise that its claim wants, on m coordinates."""
    delta = DELTA if mechanism == "gaussian" else 0.0
    scale = share * noise_scale(mechanism, epsilon, delta, m)
    rng = np.random.default_rng(seed)
    other = np.zeros(m)
    other[: m if differ is None else differ] = 1
    return epsilon_lower_bound(
        lambda x: perturb(x, mechanism, scale, "seeded", rng),
        np.zeros(m),
        other,
        delta=delta,
        **{"trials": 1000, "confidence": 0.99, **options},
    )


def test_gaussian_noise_passes_and_half_of_it_is_caught():
    sound, broken = (
        [
            audit("gaussian", 2.0, seed, share=share, trials=1600, evidence=gaussian_noise).epsilon
            for seed in range(20)
        ]
        for share in (1.0, 0.5)
    )
    assert max(sound) <= 2.0
    assert min(broken) > 2.0
    assert max(broken) < 4.5  # half the noise costs 4.4: the bound is one, too


def test_laplace_noise_passes_and_half_of_it_is_caught_without_assuming_anything():
    # One layer of 20 differs: a claim of 20 for all is one of 1 for each.
    sound, broken = (
        [audit("laplace", 20.0, seed, share=share, differ=1).epsilon for seed in range(20)]
        for share in (1.0, 0.5)
    )
    assert max(sound) <= 1.0
    assert min(broken) > 1.0
    assert max(broken) < 2.0


def test_nothing_is_assumed_of_the_noise_unless_asked():
    assert audit("gaussian", 1.0, 0, share=0.2, trials=4000).epsilon > 1.0
    assert audit("gaussian", 1.0, 0, trials=4000).epsilon <= 1.0


def test_more_trials_say_more():
    few, many = (
        audit("gaussian", 4.0, 1, trials=n, evidence=gaussian_noise).epsilon for n in (300, 8000)
    )
    assert few < many < 4.0
    assert many > 3.0


def test_either_input_may_be_the_one_that_shows():
    # It returns zero for all but one release in four of zeros: only ever small scores tell.
    rng = np.random.default_rng(0)

    def leaks(x):
        return np.array([-1.0 if x[0] == 0 and rng.random() < 0.25 else rng.random()])

    found = epsilon_lower_bound(leaks, np.zeros(1), np.ones(1), trials=1000, delta=0.0)
    assert found.epsilon > 2  # 125 or so against none


def test_no_noise_and_no_answer():
    def exact(x):
        return x

    def deaf(x):
        return np.zeros(3)

    pair = np.zeros(3), np.ones(3)
    assert epsilon_lower_bound(exact, *pair, trials=2000, delta=0.0).epsilon > 5
    assert epsilon_lower_bound(deaf, *pair, trials=2000, delta=0.0).epsilon == 0
    assert (
        epsilon_lower_bound(deaf, *pair, trials=2000, delta=1e-5, evidence=gaussian_noise).epsilon
        == 0
    )


@pytest.mark.parametrize("side", [0, 1])
def test_rates_are_clopper_and_pearsons(side):
    scores = np.array([np.arange(40.0), np.arange(40.0) + 7])
    thresholds = np.array([-1.0, 0.0, 12.0, 30.5, 46.0, 99.0])
    found = _rates(scores, thresholds, 0.025)
    for rates, row, end in ((found[0], scores[1], "low"), (found[1], scores[0], "high")):
        counts = [int((row >= t).sum()) for t in thresholds]
        wanted = [
            getattr(binomtest(c, 40).proportion_ci(0.95, method="exact"), end) for c in counts
        ]
        np.testing.assert_allclose(rates, wanted, atol=1e-12)


def test_evidence_by_hand():
    hits, alarms = np.array([0.5, 0.2, 0.1]), np.array([0.1, 0.2, 0.5])
    np.testing.assert_allclose(any_noise(hits, alarms, 0.0), [np.log(5), 0, 0])
    np.testing.assert_allclose(any_noise(hits, alarms, 0.2), [np.log(3), 0, 0])
    # The rates of a shift by one standard deviation, at the threshold 0: as Balle and Wang have it.
    from scipy.stats import norm

    epsilon = gaussian_noise(np.array([norm.sf(-1)]), np.array([norm.sf(0)]), DELTA)
    assert 1 / noise_scale("gaussian", float(epsilon[0]), DELTA, 1) == pytest.approx(1, rel=1e-6)


def test_the_sentence():
    found = audit("gaussian", 2.0, 0, share=0.5, evidence=gaussian_noise)
    assert found.sentence(2.0).endswith("the claim of ε = 2 is refuted")
    assert found.sentence(6.0).endswith("nothing against the claim of ε = 6")
    assert found.sentence(2.0).startswith(
        f"1,000 releases of each of two users show ε ≥ {found.epsilon:.3g} at δ = 1e-05 (99 %"
    )


def test_audits_that_say_nothing():
    for options in ({"trials": 99}, {"confidence": 1.0}, {"delta": 1.0}):
        settings = {"trials": 100, "delta": 0.0, **options}
        with pytest.raises(FedsimError, match=r"give 100 trials or more, and numbers in 0\.\.1"):
            epsilon_lower_bound(lambda x: x, np.zeros(1), np.ones(1), **settings)
