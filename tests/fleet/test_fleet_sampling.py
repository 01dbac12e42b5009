from __future__ import annotations

import math
import pickle
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from fleet_toys import DEVICE, thorough
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsim.errors import FedsimError
from fedsim.fleet import DeviceClass, FleetSettings, Share, open_fleet
from fedsim.fleet.distributions import (
    QUANTITIES,
    Choices,
    Constant,
    LogNormal,
    TruncatedNormal,
    Uniform,
    correlation_root,
)
from fedsim.fleet.sampling import check_fleet, sample_profile
from fedsim.fleet.windows import read_hours

N = 2000
KEYS = [f"c{i:05d}" for i in range(N)]
CATALOGUE = {
    "toy": DeviceClass(replace(DEVICE, battery_j=1000.0), 0.0, ()),
    "other": DeviceClass(replace(DEVICE, device="other"), 0.0, ()),
    "night": DeviceClass(replace(DEVICE, device="night", available=read_hours("22-7")), 2.0, ()),
}


def fleet(shares, seed=1, keys=KEYS, correlations=None):
    settings = FleetSettings(None, tuple(shares), correlation_root(correlations or {}))
    return list(open_fleet(settings, CATALOGUE, seed, keys).values())


def one(**distributions):
    return [Share("toy", 1, distributions)]


def is_from(values, distribution):
    """Return whether values may well be from a distribution (Kolmogorov and Smirnov)."""
    return stats.kstest(values, distribution.cdf).pvalue > 0.01


def test_what_is_drawn_stays_in_span():
    for wild in (LogNormal(2, 2000), TruncatedNormal(1e6, 1e12)):
        found = sorted(p.budget_mb for p in fleet(one(budget_mb=wild), keys=KEYS[:50]))
        assert 1e-6 <= found[0] <= found[-1] == 1e6
    found = sorted(p.budget_mb for p in fleet(one(budget_mb=LogNormal(2, 2000)), keys=KEYS[:50]))
    assert found[0] == 1e-6


def test_shares_are_probabilities():
    found = Counter(p.device for p in fleet([Share("toy", 0.2), Share("other", 0.8)]))
    assert stats.binomtest(found["toy"], N, 0.2).pvalue > 0.01
    assert found["toy"] + found["other"] == N
    assert {p.device for p in fleet([Share("toy", 1), Share("other", 0)])} == {"toy"}


def test_a_device_depends_on_seed_and_key_alone():
    varying = {"budget_mb": Uniform(1, 2), "speed": Uniform(1, 2)}
    settings = FleetSettings(shares=(Share("toy", 0.5, varying), Share("night", 0.5)))
    all_of_them = open_fleet(settings, CATALOGUE, 1, KEYS[::-1])
    assert list(all_of_them) == KEYS
    few = open_fleet(settings, CATALOGUE, 1, KEYS[50:60])
    assert few == {key: all_of_them[key] for key in KEYS[50:60]}
    assert sample_profile(settings, CATALOGUE, 1, KEYS[7]) == all_of_them[KEYS[7]]
    assert open_fleet(settings, CATALOGUE, 2, KEYS) != all_of_them


def test_a_quantity_that_begins_to_vary_changes_no_other():
    before = fleet(one(budget_mb=Uniform(1, 2)), keys=KEYS[:50])
    more = one(budget_mb=Uniform(1, 2), memory_mb=Uniform(5, 9), link=Uniform(1, 3))
    after = fleet(more, keys=KEYS[:50])
    assert [p.budget_mb for p in before] == [p.budget_mb for p in after]
    assert len({p.memory_mb for p in after}) == 50


def test_uniform_and_fixed():
    budgets = [p.budget_mb for p in fleet(one(budget_mb=Uniform(1.2, 1.6)))]
    assert is_from(budgets, stats.uniform(1.2, 0.4))
    assert {p.memory_mb for p in fleet(one(memory_mb=Constant(7)), keys=KEYS[:5])} == {7}
    assert {p.budget_mb for p in fleet(one(), keys=KEYS[:5])} == {DEVICE.budget_mb}
    assert {p.budget_mb for p in fleet(one(budget_mb=Uniform(3, 3)), keys=KEYS[:5])} == {3}


def test_log_normal_speed_scales_every_depth():
    profiles = fleet(one(speed=LogNormal(2, 0.3)))
    speeds = np.array([p.macs_per_s[8] for p in profiles]) / DEVICE.macs_per_s[8]
    assert is_from(speeds, stats.lognorm(0.3, scale=2))
    for p, speed in zip(profiles[:50], speeds, strict=False):
        assert p.macs_per_s == pytest.approx(
            {bits: rate * speed for bits, rate in DEVICE.macs_per_s.items()}
        )
        assert p.joules_per_gmac == DEVICE.joules_per_gmac


def test_normal_numbers_above_zero():
    budgets = [p.budget_mb for p in fleet(one(budget_mb=TruncatedNormal(1, 1)))]
    assert min(budgets) > 0
    assert is_from(budgets, stats.truncnorm(-1, math.inf, loc=1, scale=1))
    assert {p.budget_mb for p in fleet(one(budget_mb=TruncatedNormal(3, 0)))} == {3}


def test_choices_and_their_weights():
    budgets = [p.budget_mb for p in fleet(one(budget_mb=Choices((2, 3, 4), (1, 1, 1))))]
    assert stats.chisquare(list(Counter(budgets).values())).pvalue > 0.01
    assert set(budgets) == {2, 3, 4}
    found = Counter(p.budget_mb for p in fleet(one(budget_mb=Choices((2, 3, 4), (1, 0, 3)))))
    assert set(found) == {2, 4}
    assert stats.binomtest(found[2], N, 0.25).pvalue > 0.01


def test_links_batteries_and_bit_depths():
    own = one(link=Constant(2), battery=Constant(0.5), bit_depths=Constant((8,)))
    profile = fleet(own, keys=["a"])[0]
    assert (profile.down_mbit, profile.up_mbit) == (DEVICE.down_mbit * 2, DEVICE.up_mbit * 2)
    assert profile.battery_j == 500
    assert profile.bit_depths == (8,)
    mains = fleet([Share("other", 1, {"battery": Constant(0.5)})], keys=["a"])[0]
    assert mains.battery_j is None
    depths = fleet(one(bit_depths=Choices(((8,), (4, 8)), (1, 1))), keys=KEYS[:50])
    assert {p.bit_depths for p in depths} == {(8,), (4, 8)}
    with pytest.raises(FedsimError, match=r"toy.macs_per_s: no number for 5 bits: add one"):
        fleet(one(bit_depths=Constant((5,))), keys=["a"])


def test_windows_are_spread():
    starts = [(p.available[0][0] - 20) % 24 for p in fleet([Share("night", 1)])]
    assert is_from(starts, stats.uniform(0, 4))
    assert {p.available[0][1] for p in fleet([Share("night", 1)], keys=KEYS[:20])} == {9}


@pytest.mark.parametrize("rho", [0.6, -0.9, 1.0])
def test_correlated_quantities(rho):
    # Spearman's rank correlation of a Gaussian copula is 6 / pi asin(rho / 2).
    profiles = fleet(
        one(budget_mb=Uniform(1, 2), speed=LogNormal(1, 0.5), link=Uniform(1, 2)),
        correlations={("budget_mb", "speed"): rho},
    )
    budgets = [p.budget_mb for p in profiles]
    found = stats.spearmanr(budgets, [p.macs_per_s[8] for p in profiles]).statistic
    assert found == pytest.approx(6 / math.pi * math.asin(rho / 2), abs=0.05)
    others = stats.spearmanr(budgets, [p.down_mbit for p in profiles]).statistic
    assert others == pytest.approx(0, abs=0.08)
    # What they are together changes nothing of what each is.
    assert is_from(budgets, stats.uniform(1, 1))


VARYING = one(budget_mb=Uniform(1, 2), speed=Uniform(1, 2), link=Uniform(1, 2))


def test_correlations_that_hold_exactly():
    # Singular, but possible: three that are one.
    ones = {("budget_mb", "speed"): 1, ("link", "budget_mb"): 1, ("speed", "link"): 1}
    p = fleet(VARYING, keys=KEYS[:1], correlations=ones)[0]
    assert p.budget_mb == pytest.approx(p.macs_per_s[8] / DEVICE.macs_per_s[8])
    assert p.budget_mb == pytest.approx(p.down_mbit / DEVICE.down_mbit)


def test_a_class_that_there_is_not():
    with pytest.raises(FedsimError, match="there is no device class 'toys': did you mean 'toy'"):
        check_fleet(FleetSettings(shares=(Share("toys", 1),)), CATALOGUE)
    with pytest.raises(FedsimError, match="there is no device class 'toys'"):
        fleet([Share("toys", 1)], keys=["a"])


def test_correlations_that_cannot_all_hold():
    # Two that are almost the same cannot go opposite ways with a third.
    opposite = {("budget_mb", "speed"): 0.9, ("budget_mb", "link"): 0.9, ("speed", "link"): -0.9}
    with pytest.raises(FedsimError, match="bring them nearer to 0"):
        correlation_root(opposite)


@thorough
@given(st.lists(st.floats(-0.2, 0.2), min_size=15, max_size=15))
def test_the_root_of_correlations_is_symmetric_and_its_square_is_the_correlations(values):
    pairs = dict(zip(combinations(QUANTITIES, 2), values, strict=True))
    root = np.array(correlation_root(pairs))
    assert np.array_equal(root, root.T) or np.allclose(root, root.T, atol=1e-12)
    square = root @ root
    assert np.allclose(np.diag(square), 1)
    for (first, second), value in pairs.items():
        i, j = QUANTITIES.index(first), QUANTITIES.index(second)
        assert square[i, j] == pytest.approx(value, abs=1e-9)


NUMBERS = st.floats(1e-6, 1e6)
DISTRIBUTIONS = st.one_of(
    st.builds(Constant, NUMBERS),
    st.builds(lambda a, b: Uniform(min(a, b), max(a, b)), NUMBERS, NUMBERS),
    st.builds(LogNormal, NUMBERS, st.floats(0, 1e300)),
    st.builds(TruncatedNormal, NUMBERS, st.floats(0, 1e300)),
    st.builds(
        lambda a, w: Choices(tuple(a), (w,) * len(a)), st.lists(NUMBERS, min_size=1), NUMBERS
    ),
)


@thorough
@given(DISTRIBUTIONS, st.floats(-40, 40), st.floats(-40, 40))
def test_any_distribution_stays_within_bounds_and_a_larger_number_gives_no_smaller_value(d, z, w):
    values = [d.at(min(z, w)), d.at(max(z, w))]
    assert all(1e-6 <= value <= 1e6 for value in values)
    if not isinstance(d, Choices):
        assert values[0] <= values[1] * (1 + 1e-12)


def test_settings_can_be_sent_to_another_process():
    settings = FleetSettings(shares=(Share("toy", 1, {"budget_mb": LogNormal(1, 0.5)}),))
    again = pickle.loads(pickle.dumps(settings))
    assert again == settings
    assert open_fleet(again, CATALOGUE, 1, ["a"]) == open_fleet(settings, CATALOGUE, 1, ["a"])
