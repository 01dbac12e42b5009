"""What each release lets out, to the byte, and what the server can make of it."""

import math
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
from entries import added
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples

from fedsim.errors import BudgetError, FedsimError
from fedsim.privacy.bounds import Bounds, clip, denormalize, normalize
from fedsim.privacy.noise import NOISE, noise_scale
from fedsim.privacy.release_params import ReleaseParams
from fedsim.privacy.releases import RELEASES, Release, Released, release, restore, view
from fedsim.quant.allocation import Sizes, allocate
from fedsim.quant.profile import profile_of

thorough = settings(max_examples=examples(150), deadline=None, derandomize=True, database=None)
L = 30
RNG = np.random.default_rng(0)
LOW = np.exp(RNG.normal(0, 3, L))
BOUNDS = Bounds(LOW, LOW * np.exp(RNG.uniform(0.1, 1.5, L)))
VALUES = denormalize(RNG.uniform(size=L), BOUNDS)
DEPTHS = (2, 3, 4, 6, 8, 16)
SIZES = Sizes(DEPTHS, RNG.integers(50, 900, (L, 1)) * np.array(DEPTHS), 1000)
BUDGET = 60_000


def planned(values, budget=BUDGET, allocation="myqasr", sizes=SIZES, **options):
    """The bit depths of each layer by an allocator that reads the order of the values."""
    return allocate(allocation, profile_of(values, "median"), sizes, budget, **options)


PARAMS = ReleaseParams(L, bounds=BOUNDS, depths=DEPTHS, plan=planned)
SINGLE = [kind for kind in RELEASES if RELEASES[kind].make is not None]
"""Releases that one device makes by itself."""
ALONE = [kind for kind in SINGLE if RELEASES[kind].gives != "public"]
"""Of these, the ones that let something out."""


def rng(seed=0):
    return np.random.default_rng(seed)


def read(found, params=PARAMS):
    """What the server reads of one release."""
    return restore(found.kind, [found.payload], params)


def test_every_release_can_be_read():
    for kind in ("none", *SINGLE):
        found = release(kind, VALUES, PARAMS, rng())
        assert found.kind == kind
        assert read(found).shape == (L,)
        if RELEASES[kind].gives != "plan":
            planned(read(found))
        assert view(kind, found.payload, PARAMS).dtype == np.float64


def test_a_release_of_a_group_is_not_made_by_one_device():
    assert [kind for kind in RELEASES if RELEASES[kind].grouped] == ["cohort"]
    with pytest.raises(FedsimError, match="group of devices; choose another"):
        release("cohort", VALUES, PARAMS, rng())
    mean = VALUES.astype("<f8").tobytes()
    np.testing.assert_array_equal(restore("cohort", [mean], PARAMS), VALUES)


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
    assert release(kind, VALUES, PARAMS, rng()).nbytes == nbytes


@pytest.mark.parametrize("kind", ["none", *ALONE])
def test_only_noise_looks_at_the_generator_and_costs(kind):
    one, two = (release(kind, VALUES, PARAMS, rng(seed)) for seed in (0, 1))
    assert (one != two) == (kind == "noisy")
    costs = {"noisy": (PARAMS.epsilon, PARAMS.delta), "none": (0.0, 0.0)}
    assert (one.epsilon, one.delta) == costs.get(kind, (None, None))
    assert one == release(kind, VALUES, PARAMS, rng(0))


def test_laplace_noise_costs_no_delta():
    found = release("noisy", VALUES, replace(PARAMS, mechanism="laplace"), rng())
    assert (found.epsilon, found.delta) == (PARAMS.epsilon, 0.0)


def test_values_come_back_to_the_bit():
    np.testing.assert_array_equal(read(release("values", VALUES, PARAMS, rng())), VALUES)


def test_quantized_comes_back_to_half_a_step():
    for bits in (1, 2, 5, 8, 16, 32):
        params = replace(PARAMS, bits=bits)
        found = release("quantized", VALUES, params, rng())
        assert found.nbytes == math.ceil(L * bits / 8)
        values, places = read(found, params), normalize(VALUES, BOUNDS)
        off = np.abs(normalize(values, BOUNDS) - places)
        assert off.max() <= 0.5 / (2**bits - 1) + 1e-9
        # Released again, the values are the same: they are steps.
        assert release("quantized", values, params, rng()) == found


def test_one_bit_a_value_says_which_half():
    params = replace(PARAMS, bits=1)
    found = release("quantized", VALUES, params, rng())
    upper = normalize(VALUES, BOUNDS) > 0.5
    np.testing.assert_allclose(read(found, params), np.where(upper, BOUNDS.high, BOUNDS.low))
    other = np.where(upper, BOUNDS.high * 5, BOUNDS.low / 5)  # all that is lost
    assert release("quantized", other, params, rng()) == found


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
    params = ReleaseParams(n)
    ranks = read(release("ranks", values, params, rng()), params)
    assert sorted(ranks) == list(range(1, n + 1))
    for budget in np.linspace(low, high, 9).astype(int):
        assert planned(ranks, budget, sizes=sizes) == planned(values, budget, sizes=sizes)


def test_ranks_give_the_plan_of_the_values_from_either_end():
    ranks = read(release("ranks", VALUES, PARAMS, rng()))
    for allocation, order in product(("myqasr", "reversed"), ("descending", "ascending")):
        for budget in range(SIZES.total([2] * L), SIZES.total([16] * L), 5_000):
            plans = [planned(v, budget, allocation, order=order) for v in (ranks, VALUES)]
            assert plans[0] == plans[1]


def test_ranks_tell_nothing_but_the_order():
    other = np.exp(5 * np.argsort(np.argsort(VALUES)) - 70.0)
    assert (other != VALUES).all()
    assert release("ranks", VALUES, PARAMS, rng()) == release("ranks", other, PARAMS, rng())


def test_ranks_by_hand():
    # Largest first: layers 2, 0, 3, 1; of those left, places 2, 0, 1, 0; 2 + 4 * (0 + 3 * 1) = 14.
    params = ReleaseParams(4)
    found = release("ranks", np.array([5.0, 1.0, 9.0, 2.0]), params, rng())
    assert found == Released("ranks", bytes([14]))
    assert read(found, params).tolist() == [3, 1, 4, 2]


def test_the_plan_is_the_devices():
    found = release("plan", VALUES, PARAMS, rng())
    assert tuple(read(found)) == planned(VALUES)
    tight = replace(PARAMS, plan=partial(planned, budget=100))
    with pytest.raises(BudgetError, match="below the smallest"):
        release("plan", VALUES, tight, rng())


def test_none_is_the_public_middle_whatever_the_audio():
    np.testing.assert_allclose(
        read(release("none", VALUES, PARAMS, rng())), np.sqrt(BOUNDS.low * BOUNDS.high)
    )


@pytest.mark.parametrize("noise", list(NOISE))
@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_noisy_is_the_clipped_value_and_noise_of_the_accounted_scale(noise, mechanism):
    many = 4_000
    bounds = Bounds(np.full(many, 1.0), np.full(many, 4.0))
    params = ReleaseParams(
        many, bounds=bounds, mechanism=mechanism, epsilon=50.0, delta=1e-6, noise=noise
    )
    values = np.full(many, 1e9)  # clipped: all at 1
    noise_added = np.frombuffer(release("noisy", values, params, rng()).payload, "<f4") - 1.0
    scale = noise_scale(mechanism, 50.0, 1e-6, many)
    spread = scale * (math.sqrt(2) if mechanism == "laplace" else 1)
    assert noise_added.std() == pytest.approx(spread, rel=0.1)
    assert abs(noise_added.mean()) < 6 * spread / math.sqrt(many)


def test_much_budget_tells_the_values():
    params = replace(PARAMS, epsilon=1e7)
    values = read(release("noisy", VALUES, params, rng()), params)
    np.testing.assert_allclose(values, VALUES, rtol=0.02)


def test_little_budget_tells_the_public_middle():
    params = replace(PARAMS, epsilon=1e-3)
    values = read(release("noisy", VALUES, params, rng()), params)
    np.testing.assert_allclose(values, BOUNDS.middle, rtol=0.01)


@pytest.mark.parametrize("epsilon", [1, 10, 100])
def test_what_is_read_is_closer_than_what_was_released(epsilon):
    params = replace(PARAMS, epsilon=float(epsilon))
    errors = []
    for seed in range(60):
        places = rng(seed).uniform(size=L)
        found = release("noisy", denormalize(places, BOUNDS), params, rng(1000 + seed))
        clipped = np.clip(np.frombuffer(found.payload, "<f4"), 0, 1)
        guesses = (normalize(read(found, params), BOUNDS), clipped, np.full(L, 0.5))
        errors.append([np.mean((guess - places) ** 2) for guess in guesses])
    estimate, clipped, middle = np.mean(errors, axis=0)
    assert estimate < clipped
    assert estimate < middle * 1.02  # and not worse than knowing nothing


def test_rounds_are_averaged_and_trusted_more():
    params = replace(PARAMS, epsilon=30.0)
    rounds = [release("noisy", VALUES, params, rng(seed)).payload for seed in range(40)]
    places = np.mean([np.frombuffer(payload, "<f4") for payload in rounds], axis=0)
    scale = noise_scale("gaussian", 30.0, params.delta, L)
    trust = (1 / 12) / (1 / 12 + scale**2 / 40)
    values = restore("noisy", rounds, params)
    expected = np.clip(0.5 + trust * (places - 0.5), 0, 1)
    np.testing.assert_allclose(normalize(values, BOUNDS), expected, atol=1e-6)
    for kind in ("values", "quantized", "ranks"):  # without noise all rounds are equal
        payload = release(kind, VALUES, PARAMS, rng()).payload
        once, thrice = (restore(kind, [payload] * n, PARAMS) for n in (1, 3))
        np.testing.assert_array_equal(once, thrice)


def test_a_table_is_released_row_by_row():
    """Six layers with five values each: the bytes of thirty values, and layers chosen as rows."""
    table = replace(PARAMS, layers=6, per_layer=5, epsilon=1e6)
    assert table.values == L
    for kind in ("values", "quantized", "noisy", "ranks", "none"):
        vector = replace(PARAMS, epsilon=1e6)
        found = release(kind, VALUES, vector, rng())
        assert release(kind, VALUES, table, rng()) == found
        np.testing.assert_array_equal(read(found, table), read(found, vector))
    chosen = replace(table, chosen=(4, 0))
    found = release("noisy", VALUES, chosen, rng())
    assert found.nbytes == 4 * 10
    values, rows = read(found, chosen), [20, 21, 22, 23, 24, 0, 1, 2, 3, 4]
    np.testing.assert_allclose(values[rows], VALUES[rows], rtol=0.01)
    rest = np.setdiff1d(np.arange(L), rows)
    np.testing.assert_allclose(values[rest], BOUNDS.middle[rest])


def test_fewer_layers_share_the_noise():
    params = replace(PARAMS, chosen=(4, 0, 29), epsilon=1e6)
    found = release("noisy", VALUES, params, rng())
    assert found.nbytes == 12
    values = read(found, params)
    np.testing.assert_allclose(values[[4, 0, 29]], VALUES[[4, 0, 29]], rtol=0.01)
    rest = np.setdiff1d(np.arange(L), [4, 0, 29])
    np.testing.assert_allclose(values[rest], BOUNDS.middle[rest])
    assert noise_scale("gaussian", 1, 1e-6, 3) < noise_scale("gaussian", 1, 1e-6, L) / 3


def test_a_value_beyond_the_bounds_is_at_the_bound():
    far = VALUES * np.where(np.arange(L) % 2, 100, 0.01)
    for kind in ("quantized", "noisy"):
        pair = [release(kind, v, PARAMS, rng()) for v in (far, clip(far, BOUNDS))]
        assert pair[0] == pair[1]


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        ("quantized", {"bounds": None}, "there are none; give one range per value"),
        ("noisy", {"bounds": Bounds(LOW[:3], LOW[:3] + 1)}, "of 30 values, and there are 3"),
        ("none", {"bounds": None}, "give one range per value"),
        ("quantized", {"bits": 0}, "0 bits per value; use 1 to 32"),
        ("quantized", {"bits": 33}, "33 bits per value; use 1 to 32"),
        ("noisy", {"chosen": ()}, r"layers \(\) .* name one or more of 0 to 29"),
        ("noisy", {"chosen": (1, 1)}, r"layers \(1, 1\) .* each once"),
        ("noisy", {"chosen": (0, 30)}, "name one or more of 0 to 29"),
        ("noisy", {"chosen": (-1,)}, "name one or more of 0 to 29"),
        ("noisy", {"noise": "quiet"}, "no noise 'quiet'"),
        ("noisy", {"epsilon": 0.0}, "epsilon is 0.0; give a positive"),
        ("plan", {"plan": None}, "set params.plan"),
        ("rank", {}, "did you mean 'ranks'"),
    ],
)
def test_parameters_out_of_range(kind, changes, text):
    params = replace(PARAMS, **changes)
    with pytest.raises(FedsimError, match=text):
        read(release(kind, VALUES, params, rng()), params)


@pytest.mark.parametrize("kind", ["none", *ALONE])
def test_profiles_of_another_shape_or_not_finite(kind):
    for wrong in (VALUES[:-1], np.append(VALUES[:-1], np.nan), VALUES[None]):
        with pytest.raises(FedsimError, match=f"release '{kind}': .* give 30 finite ones"):
            release(kind, wrong, PARAMS, rng())


@pytest.mark.parametrize("kind", ["none", *ALONE])
def test_payloads_of_another_length(kind):
    payload = release(kind, VALUES, PARAMS, rng()).payload
    for wrong in (payload + b"\0", payload[:-1]):
        if wrong != payload:
            with pytest.raises(FedsimError, match="give device and server the same parameters"):
                restore(kind, [wrong], PARAMS)


def test_a_release_of_another_package():
    """An entry is all that it takes, and its traits are what the rest of fedsim asks for."""
    entry = Release(
        make=lambda values, params, rng: np.sign(values - 1).astype("i1").tobytes(),
        read=lambda payload, params: np.exp(np.frombuffer(payload, "i1").astype(float)),
        summary="Whether each value is above 1.",
        statement="Each device sends one bit per layer.",
        settings=(),
    )
    with added(RELEASES, "signs", entry):
        found = release("signs", VALUES, PARAMS, rng())
        assert (found.nbytes, found.epsilon) == (L, None)
        assert ((read(found) > 1) == (VALUES > 1)).all()
        assert not entry.needs_bounds
        assert "signs" in RELEASES.names()
    with pytest.raises(FedsimError, match="no release 'signs'"):
        release("signs", VALUES, PARAMS, rng())
