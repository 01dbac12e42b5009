"""What each release lets out, to the byte, and what the server can make of it."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import BudgetError, FedsimError
from fedsim.privacy.bounds import Bounds, clip, denormalize, normalize
from fedsim.privacy.noise import NOISE, noise_scale
from fedsim.privacy.release_params import ReleaseParams
from fedsim.privacy.releases import READINGS, RELEASES, Released, release, restore
from fedsim.quant.allocation import Sizes, allocate

thorough = settings(max_examples=150, deadline=None, derandomize=True, database=None)
L = 30
RNG = np.random.default_rng(0)
LOW = np.exp(RNG.normal(0, 3, L))
BOUNDS = Bounds(LOW, LOW * np.exp(RNG.uniform(0.1, 1.5, L)))
VALUES = denormalize(RNG.uniform(size=L), BOUNDS)
DEPTHS = (2, 3, 4, 6, 8, 16)
SIZES = Sizes(DEPTHS, RNG.integers(50, 900, (L, 1)) * np.array(DEPTHS), 1000)
BUDGET = 60_000
PLAN = partial(allocate, "myqasr", sizes=SIZES, budget=BUDGET)
TERMS = ReleaseParams(L, BOUNDS, depths=DEPTHS, plan=PLAN)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_every_release_can_be_read():
    assert RELEASES.names() == READINGS.names()
    for kind in RELEASES:
        found = release(kind, VALUES, TERMS, rng())
        assert found.kind == kind
        assert restore(found, TERMS).shape == (L,)
        allocate("myqasr", restore(found, TERMS), SIZES, BUDGET)


@pytest.mark.parametrize(
    ("kind", "nbytes"),
    [
        ("values", 8 * L),
        ("quantized", L),  # 8 bits
        ("noisy", 4 * L),
        ("ranks", math.ceil(math.log2(math.factorial(L)) / 8)),
        ("plan", math.ceil(L * math.log2(len(DEPTHS)) / 8)),
        ("none", 0),
    ],
)
def test_bytes(kind, nbytes):
    assert release(kind, VALUES, TERMS, rng()).nbytes == nbytes


@pytest.mark.parametrize("kind", list(RELEASES))
def test_only_noise_looks_at_the_generator_and_costs(kind):
    one, two = (release(kind, VALUES, TERMS, rng(seed)) for seed in (0, 1))
    assert (one != two) == (kind == "noisy")
    costs = {"noisy": (TERMS.epsilon, TERMS.delta), "none": (0.0, 0.0)}
    assert (one.epsilon, one.delta) == costs.get(kind, (None, None))
    assert one == release(kind, VALUES, TERMS, rng(0))


def test_laplace_noise_costs_no_delta():
    found = release("noisy", VALUES, replace(TERMS, mechanism="laplace"), rng())
    assert (found.epsilon, found.delta) == (TERMS.epsilon, 0.0)


def test_values_come_back_to_the_bit():
    np.testing.assert_array_equal(restore(release("values", VALUES, TERMS, rng()), TERMS), VALUES)


@pytest.mark.parametrize("bits", [1, 2, 5, 8, 16, 32])
def test_quantized_comes_back_to_half_a_step(bits):
    terms = replace(TERMS, bits=bits)
    found = release("quantized", VALUES, terms, rng())
    assert found.nbytes == math.ceil(L * bits / 8)
    told, places = restore(found, terms), normalize(VALUES, BOUNDS)
    off = np.abs(normalize(told, BOUNDS) - places)
    assert off.max() <= 0.5 / (2**bits - 1) + 1e-9
    # The same again from what was told: it is one of the steps.
    assert release("quantized", told, terms, rng()) == found


def test_one_bit_a_value_says_which_half():
    terms = replace(TERMS, bits=1)
    found = release("quantized", VALUES, terms, rng())
    upper = normalize(VALUES, BOUNDS) > 0.5
    np.testing.assert_allclose(restore(found, terms), np.where(upper, BOUNDS.high, BOUNDS.low))
    other = np.where(upper, BOUNDS.high * 5, BOUNDS.low / 5)  # all that is lost
    assert release("quantized", other, terms, rng()) == found


finite = st.floats(-1e6, 1e6, allow_subnormal=False)


@thorough
@given(st.data())
def test_ranks_lose_nothing_to_algorithm_1(data):
    n = data.draw(st.integers(1, 40))
    # Few distinct values: ties must be broken as Algorithm 1 breaks them.
    values = np.array(
        data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0, -1.0]) | finite, min_size=n, max_size=n))
    )
    sizes = Sizes((2, 4, 8), rng(n).integers(1, 100, (n, 1)) * np.array([2, 4, 8]), 10)
    low, high = sizes.total([2] * n), sizes.total([8] * n)
    terms = ReleaseParams(n)
    told = restore(release("ranks", values, terms, rng()), terms)
    assert sorted(told) == list(range(1, n + 1))
    for budget in np.linspace(low, high, 9).astype(int):
        assert allocate("myqasr", told, sizes, budget) == allocate("myqasr", values, sizes, budget)


@pytest.mark.parametrize("allocation", ["myqasr", "reversed"])
@pytest.mark.parametrize("order", ["descending", "ascending"])
def test_ranks_give_the_plan_of_the_values_from_either_end(allocation, order):
    told = restore(release("ranks", VALUES, TERMS, rng()), TERMS)
    for budget in range(SIZES.total([2] * L), SIZES.total([16] * L), 5_000):
        plans = [allocate(allocation, v, SIZES, budget, order=order) for v in (told, VALUES)]
        assert plans[0] == plans[1]


def test_ranks_tell_nothing_but_the_order():
    other = np.exp(5 * np.argsort(np.argsort(VALUES)) - 70.0)
    assert (other != VALUES).all()
    assert release("ranks", VALUES, TERMS, rng()) == release("ranks", other, TERMS, rng())


def test_ranks_by_hand():
    # Largest first: layers 2, 0, 3, 1; of those left, places 2, 0, 1, 0; 2 + 4 * (0 + 3 * 1) = 14.
    terms = ReleaseParams(4)
    found = release("ranks", np.array([5.0, 1.0, 9.0, 2.0]), terms, rng())
    assert found == Released("ranks", bytes([14]))
    assert restore(found, terms).tolist() == [3, 1, 4, 2]


def test_the_plan_is_the_device_s():
    found = release("plan", VALUES, TERMS, rng())
    assert tuple(restore(found, TERMS)) == allocate("myqasr", VALUES, SIZES, BUDGET)
    tight = replace(TERMS, plan=partial(PLAN, budget=100))
    with pytest.raises(BudgetError, match="below the smallest"):
        release("plan", VALUES, tight, rng())


def test_none_is_the_public_middle_whatever_the_audio():
    np.testing.assert_allclose(
        restore(release("none", VALUES, TERMS, rng()), TERMS), np.sqrt(BOUNDS.low * BOUNDS.high)
    )


@pytest.mark.parametrize("noise", list(NOISE))
@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_noisy_is_the_clipped_value_and_noise_of_the_accounted_scale(noise, mechanism):
    many = 4_000
    bounds = Bounds(np.full(many, 1.0), np.full(many, 4.0))
    terms = ReleaseParams(many, bounds, mechanism=mechanism, epsilon=50.0, delta=1e-6, noise=noise)
    values = np.full(many, 1e9)  # clipped: all at 1
    told = np.frombuffer(release("noisy", values, terms, rng()).payload, "<f4") - 1.0
    scale = noise_scale(mechanism, 50.0, 1e-6, many)
    spread = scale * (math.sqrt(2) if mechanism == "laplace" else 1)
    assert told.std() == pytest.approx(spread, rel=0.1)
    assert abs(told.mean()) < 6 * spread / math.sqrt(many)


def test_much_budget_tells_the_values():
    terms = replace(TERMS, epsilon=1e7)
    told = restore(release("noisy", VALUES, terms, rng()), terms)
    np.testing.assert_allclose(told, VALUES, rtol=0.02)


def test_little_budget_tells_the_public_middle():
    terms = replace(TERMS, epsilon=1e-3)
    told = restore(release("noisy", VALUES, terms, rng()), terms)
    np.testing.assert_allclose(told, BOUNDS.middle, rtol=0.01)


@pytest.mark.parametrize("epsilon", [1, 10, 100])
def test_what_is_read_is_closer_than_what_was_told(epsilon):
    terms = replace(TERMS, epsilon=float(epsilon))
    errors = []
    for seed in range(60):
        places = rng(seed).uniform(size=L)
        found = release("noisy", denormalize(places, BOUNDS), terms, rng(1000 + seed))
        clipped = np.clip(np.frombuffer(found.payload, "<f4"), 0, 1)
        guesses = (normalize(restore(found, terms), BOUNDS), clipped, np.full(L, 0.5))
        errors.append([np.mean((guess - places) ** 2) for guess in guesses])
    read, clipped, middle = np.mean(errors, axis=0)
    assert read < clipped
    assert read < middle * 1.02  # and not worse than knowing nothing


def test_fewer_layers_share_the_noise():
    terms = replace(TERMS, chosen=(4, 0, 29), epsilon=1e6)
    found = release("noisy", VALUES, terms, rng())
    assert found.nbytes == 12
    told = restore(found, terms)
    np.testing.assert_allclose(told[[4, 0, 29]], VALUES[[4, 0, 29]], rtol=0.01)
    rest = np.setdiff1d(np.arange(L), [4, 0, 29])
    np.testing.assert_allclose(told[rest], BOUNDS.middle[rest])
    assert noise_scale("gaussian", 1, 1e-6, 3) < noise_scale("gaussian", 1, 1e-6, L) / 3


def test_a_value_beyond_the_bounds_is_at_the_bound():
    far = VALUES * np.where(np.arange(L) % 2, 100, 0.01)
    for kind in ("quantized", "noisy"):
        pair = [release(kind, v, TERMS, rng()) for v in (far, clip(far, BOUNDS))]
        assert pair[0] == pair[1]


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        ("quantized", {"bounds": None}, "needs public bounds of 30 layers, and there are none"),
        ("noisy", {"bounds": Bounds(LOW[:3], LOW[:3] + 1)}, "and there are 3"),
        ("none", {"bounds": None}, "needs public bounds"),
        ("quantized", {"bits": 0}, "0 bits a value"),
        ("quantized", {"bits": 33}, "33 bits a value"),
        ("noisy", {"chosen": ()}, r"layers \(\) cannot"),
        ("noisy", {"chosen": (1, 1)}, r"layers \(1, 1\)"),
        ("noisy", {"chosen": (0, 30)}, "name one or more of 0 to 29"),
        ("noisy", {"chosen": (-1,)}, "name one or more of 0 to 29"),
        ("noisy", {"noise": "quiet"}, "no noise 'quiet'"),
        ("noisy", {"epsilon": 0.0}, "epsilon is 0"),
        ("plan", {"plan": None}, "no plan"),
        ("rank", {}, "did you mean 'ranks'"),
    ],
)
def test_terms_that_no_release_can_keep(kind, changes, text):
    terms = replace(TERMS, **changes)
    with pytest.raises(FedsimError, match=text):
        restore(release(kind, VALUES, terms, rng()), terms)


@pytest.mark.parametrize("odd", [VALUES[:-1], np.append(VALUES[:-1], np.nan), VALUES[None]])
@pytest.mark.parametrize("kind", list(RELEASES))
def test_summaries_that_are_none(kind, odd):
    with pytest.raises(FedsimError, match="cannot be released for a model of 30 layers"):
        release(kind, odd, TERMS, rng())


@pytest.mark.parametrize("kind", list(RELEASES))
def test_payloads_of_another_length(kind):
    found = release(kind, VALUES, TERMS, rng())
    for payload in (found.payload + b"\0", found.payload[:-1]):
        if payload != found.payload:
            with pytest.raises(FedsimError, match="device and server do not agree"):
                restore(replace(found, payload=payload), TERMS)
