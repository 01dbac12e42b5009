"""How much noise, of which distribution, from where."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from entries import added
from scipy.optimize import brentq
from scipy.stats import kstest, laplace, norm

from fedsim.errors import FedsimError
from fedsim.privacy.noise import MECHANISMS, NOISE, noise_scale, perturb

SHAPES = {"gaussian": norm, "laplace": laplace}


def delta_of(epsilon, sigma, sensitivity):
    """Balle and Wang 2018, Theorem 8, with no library's help but the normal distribution."""
    a, b = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
    return norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b)


def test_gaussian_scale_is_the_minimum_that_keeps_the_claim():
    claims = product((0.1, 1, 4, 12), (1e-9, 1e-5, 1e-2), (1, 20, 400))
    for epsilon, delta, coordinates in claims:
        sensitivity = np.linalg.norm(np.ones(coordinates) - np.zeros(coordinates))
        sigma = noise_scale("gaussian", epsilon, delta, coordinates)

        def excess(scale, epsilon=epsilon, delta=delta, sensitivity=sensitivity):
            return delta_of(epsilon, scale, sensitivity) - delta

        assert sigma == pytest.approx(brentq(excess, sigma / 10, sigma * 10), rel=1e-6)
        assert excess(sigma) <= delta * 1e-9


def test_gaussian_scale_against_the_known_number():
    # For epsilon 1, delta 1e-5, sensitivity 1; the classical sqrt(2 ln(1.25 / delta)) / epsilon is
    # 4.84.
    assert noise_scale("gaussian", 1, 1e-5, 1) == pytest.approx(3.7306, abs=1e-4)


def test_opendp_agrees_on_what_a_scale_costs():
    import opendp.prelude as dp

    dp.enable_features("contrib")
    domain = dp.vector_domain(dp.atom_domain(T=float, nan=False))
    for coordinates in (1, 20, 400):
        far = np.ones(coordinates)
        b = noise_scale("laplace", 1.5, 0, coordinates)
        laplace = dp.m.make_laplace(domain, dp.l1_distance(T=float), b)
        assert laplace.map(float(np.abs(far).sum())) == pytest.approx(1.5, rel=1e-9)
        # OpenDP accounts the Gaussian in zero-concentrated privacy, whose conversion is looser.
        sigma = noise_scale("gaussian", 1.5, 1e-6, coordinates)
        gaussian = dp.m.make_gaussian(domain, dp.l2_distance(T=float), sigma)
        curve = dp.c.make_zCDP_to_approxDP(gaussian).map(float(np.linalg.norm(far)))
        assert 1.5 <= curve.epsilon(1e-6) <= 1.5 * 1.1


@pytest.mark.parametrize("mechanism", list(MECHANISMS))
@pytest.mark.parametrize("noise", list(NOISE))
def test_both_sources_have_the_distribution_that_is_accounted_for(mechanism, noise):
    # `secure` cannot be seeded: one run in a million would fail by chance.
    scale, n = 2.5, 10_000
    values = np.random.default_rng(0).uniform(size=n)
    noisy = perturb(values, mechanism, scale, noise, np.random.default_rng(1))
    assert kstest(noisy - values, SHAPES[mechanism](scale=scale).cdf).pvalue > 1e-6
    # And the test can tell: a quarter less noise, or a third more, is another distribution.
    for wrong in (3 / 4, 4 / 3):
        other = SHAPES[mechanism](scale=scale * wrong)
        assert kstest(noisy - values, other.cdf).pvalue < 1e-3


@pytest.mark.parametrize("mechanism", list(MECHANISMS))
def test_the_two_sources_are_indistinguishable(mechanism):
    zeros = np.zeros(6_000)
    pair = [perturb(zeros, mechanism, 1.0, n, np.random.default_rng(2)) for n in NOISE]
    assert kstest(*pair).pvalue > 1e-6


def test_variance_is_that_of_the_noise():
    for mechanism in MECHANISMS:
        known = MECHANISMS[mechanism].variance(3.0)
        assert known == pytest.approx(SHAPES[mechanism](scale=3.0).var())


@pytest.mark.parametrize("mechanism", list(MECHANISMS))
def test_seeded_noise_comes_again_and_secure_noise_does_not(mechanism):
    def noisy(noise, seed):
        return perturb(np.full(5, 0.5), mechanism, 1.0, noise, np.random.default_rng(seed))

    np.testing.assert_array_equal(noisy("seeded", 7), noisy("seeded", 7))
    assert (noisy("seeded", 7) != noisy("seeded", 8)).all()
    assert (noisy("secure", 7) != noisy("secure", 7)).all()


def test_every_coordinate_has_noise_of_its_own():
    noisy = perturb(np.zeros(400), "gaussian", 1.0, "seeded", np.random.default_rng(3))
    assert len(set(noisy)) == 400


def test_values_that_noise_would_not_cover_are_refused():
    for values in ([0.5, 1.01], [-0.01, 0.5], [0.5, np.nan], [[0.1, 0.2], [0.3, 0.4]]):
        with pytest.raises(ValueError, match=r"outside \[0, 1\]: normalize"):
            perturb(np.array(values), "gaussian", 1.0, "seeded", np.random.default_rng(0))


def test_a_scale_without_noise_is_refused():
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="protects nothing"):
            perturb(np.zeros(2), "laplace", scale, "secure", np.random.default_rng(0))


def test_a_mechanism_of_another_package():
    """Half the noise, without delta: its traits are what the accountant and a release ask for."""
    half = replace(
        MECHANISMS["laplace"],
        summary="Half of Laplace noise.",
        scale=lambda epsilon, delta, coordinates: coordinates / epsilon / 2,
    )
    with added(MECHANISMS, "half", half):
        assert noise_scale("half", 2.0, 0, 6) == 1.5
        values = np.full(4, 0.5)
        pair = [
            perturb(values, name, 1.5, "seeded", np.random.default_rng(4))
            for name in ("half", "laplace")
        ]
        np.testing.assert_array_equal(*pair)
        assert not half.is_normal
        assert MECHANISMS["gaussian"].is_normal


def test_what_no_noise_can_keep():
    for mechanism, epsilon, delta, coordinates, text in (
        ("gaussian", 0, 1e-5, 4, "epsilon is 0"),
        ("gaussian", -1, 1e-5, 4, "epsilon is -1"),
        ("gaussian", math.inf, 1e-5, 4, "epsilon is inf"),
        ("gaussian", math.nan, 1e-5, 4, "epsilon is nan"),
        ("gaussian", 1, 0, 4, "delta is 0"),
        ("gaussian", 1, 1, 4, "delta is 1"),
        ("laplace", 1, -1e-9, 4, "delta is -1e-09"),
        ("laplace", 1, math.nan, 4, "delta is nan"),
        ("laplace", 1, 0, 0, "for 0 layers"),
        ("laplas", 1, 0, 4, "did you mean 'laplace'"),
    ):
        with pytest.raises(FedsimError, match=text):
            noise_scale(mechanism, epsilon, delta, coordinates)


def test_an_unknown_source():
    with pytest.raises(FedsimError, match="did you mean 'secure'"):
        perturb(np.zeros(2), "laplace", 1.0, "secured", np.random.default_rng(0))
