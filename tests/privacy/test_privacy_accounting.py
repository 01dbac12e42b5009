"""What releases cost together, against published bounds and against simulation."""

import math
from itertools import product

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from fedsim.errors import FedsimError
from fedsim.privacy.accounting import compose, guarantee
from fedsim.privacy.noise import noise_scale


def test_gaussian_rounds_against_the_closed_form():
    # n releases at distance mu from each other are one at sqrt(n) mu (Dong, Roth and Su 2022,
    # Corollaries 2.13 and 3.3).
    scale, delta = 25.0, 1e-6

    def excess(epsilon, mu):
        low, high = -mu / 2 - epsilon / mu, mu / 2 - epsilon / mu
        return norm.cdf(high) - math.exp(epsilon) * norm.cdf(low) - delta

    for rounds, coordinates in product((1, 3, 50), (1, 90)):
        mu = math.sqrt(rounds * coordinates) / scale
        exact = brentq(excess, 0, 40, args=(mu,))
        found = compose("gaussian", scale, coordinates, rounds, delta)
        assert found == pytest.approx(exact, abs=1e-6)


def test_gaussian_rounds_cost_less_than_published_upper_bounds():
    # Zero-concentrated privacy: rho + 2 sqrt(rho ln(1 / delta)) (Bun and Steinke 2016, Proposition
    # 1.3); and Renyi privacy of order a: a / (2 sigma^2) + ln(1 / delta) / (a - 1) (Mironov 2017).
    sigma, rounds, delta = 10.0, 40, 1e-6
    found = compose("gaussian", sigma, 1, rounds, delta)
    rho = rounds / (2 * sigma**2)
    orders = np.arange(1.01, 100, 0.01)
    renyi = (orders * rho + math.log(1 / delta) / (orders - 1)).min()
    assert renyi * 0.8 < found < renyi <= rho + 2 * math.sqrt(rho * math.log(1 / delta)) + 1e-3


def test_one_round_costs_what_was_asked_for():
    for (mechanism, delta), epsilon in product((("gaussian", 1e-6), ("laplace", 0)), (0.3, 2, 9)):
        scale = noise_scale(mechanism, epsilon, delta, 60)
        assert compose(mechanism, scale, 60, 1, delta) == pytest.approx(epsilon, rel=1e-6)


def test_laplace_without_delta_is_the_sum():
    assert compose("laplace", 5.0, 20, 3, 0) == 20 * 3 / 5.0


def optimal(epsilon0, k, delta):
    """Kairouz, Oh and Viswanath 2015, "The Composition Theorem for Differential Privacy", Theorem
    3.3: the best epsilon that any k releases of epsilon0 each can be promised at delta."""

    def delta_at(i):
        terms = (
            math.comb(k, j) * (math.exp((k - j) * epsilon0) - math.exp((k - 2 * i + j) * epsilon0))
            for j in range(i)
        )
        return math.fsum(terms) / (1 + math.exp(epsilon0)) ** k

    return max(i for i in range(k // 2 + 1) if delta_at(i) <= delta)


@pytest.mark.parametrize(("k", "scale"), [(20, 4.0), (60, 10.0)])
def test_laplace_rounds_cost_less_than_the_worst_mechanism(k, scale):
    delta = 1e-4
    worst = (k - 2 * optimal(1 / scale, k, delta)) / scale
    assert 0.5 * worst < compose("laplace", scale, 1, k, delta) <= worst
    assert compose("laplace", scale, 1, k, delta) < k / scale


def test_laplace_rounds_against_renyi_privacy():
    # Mironov 2017, "Renyi Differential Privacy", Table II.
    b, k, delta = 8.0, 100, 1e-5
    a = np.arange(1.05, 60, 0.01)
    one = np.log(a / (2 * a - 1) * np.exp((a - 1) / b) + (a - 1) / (2 * a - 1) * np.exp(-a / b)) / (
        a - 1
    )
    renyi = (k * one + math.log(1 / delta) / (a - 1)).min()
    assert renyi * 0.75 < compose("laplace", b, 1, k, delta) < renyi


def test_laplace_rounds_against_simulation():
    # delta(epsilon) = E[(1 - exp(epsilon - loss))+] over the losses of k Laplace draws.
    b, k, delta = 3.0, 12, 0.02
    epsilon = compose("laplace", b, 1, k, delta)
    draws = np.random.default_rng(0).laplace(0, b, (200_000, k))
    losses = ((np.abs(draws - 1) - np.abs(draws)) / b).sum(axis=1)
    gains = np.maximum(1 - np.exp(epsilon - losses), 0)
    error = 4 * gains.std() / math.sqrt(len(gains))
    assert gains.mean() == pytest.approx(delta, abs=error)
    assert error < 0.1 * delta


def test_a_lifetime_of_releases():
    # Dwork and Roth 2014, section 3.5.2: 10,000 databases of (1/801, 0) each cost epsilon 1 at
    # delta e^-32. That is below what floating point resolves (the sum is left, sound but large); at
    # a larger delta they cost less still.
    assert 0.8 < compose("laplace", 801.0, 1, 10_000, 1e-12) <= 1
    assert compose("laplace", 801.0, 1, 10_000, math.exp(-32)) == 10_000 / 801


def test_layers_and_rounds_cost_alike():
    # All of 30 layers may change at once: one release of 30 is 30 releases of one.
    for mechanism in ("gaussian", "laplace"):
        together = compose(mechanism, 20.0, 30, 2, 1e-5)
        assert together == pytest.approx(compose(mechanism, 20.0, 1, 60, 1e-5))


def guaranteed(**changes):
    settings = {
        "mechanism": "gaussian",
        "epsilon": 1.0,
        "delta": 1e-6,
        "coordinates": 96,
        "rounds": 3,
        "clients": 1000,
        "clipping": "each of 96 layers is clipped",
        "noise": "secure",
    }
    return guarantee(**(settings | changes))


def test_a_guarantee_in_words():
    found = guaranteed()
    assert found.scale == noise_scale("gaussian", 1, 1e-6, 96)
    assert found.cumulative_epsilon == compose("gaussian", found.scale, 96, 3, 1e-6)
    assert 1 < found.cumulative_epsilon < 3
    text = found.sentence()
    assert text == (
        f"A release costs ε = 1 at δ = 1e-06, {found.cumulative_epsilon:.4g} over 3 of them: local"
        " differential privacy of all audio of one user, against any other audio in its place; each"
        f" of 96 layers is clipped, then given gaussian noise of scale {found.scale:.4g} ranges, by"
        " the analytic Gaussian mechanism."
    )
    seeded = guaranteed(noise="seeded").sentence()
    assert seeded.startswith(text)
    assert "protects nobody; a deployment must use secure noise" in seeded
    pure = guaranteed(mechanism="laplace", delta=0, rounds=1).sentence()
    assert pure.startswith("A release costs ε = 1: local")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"delta": 1e-3}, r"1000 clients; use less than 1 / clients = 0.001"),
        ({"delta": 0.0}, "delta is 0"),
        ({"epsilon": 0.0}, "epsilon is 0"),
        ({"rounds": 0}, "0 releases"),
        ({"noise": "safe"}, "no noise 'safe'"),
        ({"mechanism": "gauss"}, "did you mean 'gaussian'"),
    ],
)
def test_guarantees_that_are_none(changes, text):
    with pytest.raises(FedsimError, match=text):
        guaranteed(**changes)


def test_what_cannot_be_accounted_for():
    for numbers in ((0.0, 1, 1), (math.inf, 1, 1), (1.0, 0, 1), (1.0, 1, 0)):
        with pytest.raises(FedsimError, match="each number must be positive"):
            compose("gaussian", *numbers, 1e-6)
