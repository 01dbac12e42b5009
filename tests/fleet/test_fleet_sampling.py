from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from fleet_toys import DEVICE
from scipy import stats

from fedsim.errors import FedsimError
from fedsim.fleet import DeviceClass, open_fleet, read_fleet
from fedsim.fleet.sampling import check_fleet, sample_profile
from fedsim.fleet.windows import read_hours

N = 2000
KEYS = [f"c{i:05d}" for i in range(N)]
CATALOGUE = {
    "toy": DeviceClass(replace(DEVICE, battery_j=1000.0), 0.0, ()),
    "other": DeviceClass(replace(DEVICE, device="other"), 0.0, ()),
    "night": DeviceClass(replace(DEVICE, device="night", available=read_hours("22-7")), 2.0, ()),
}


def fleet(devices, seed=1, keys=KEYS, **more):
    settings = read_fleet({"devices": devices, **more})
    return list(open_fleet(settings, CATALOGUE, seed, keys).values())


def one(**quantities):
    return {"toy": {"share": 1, **quantities}}


def is_from(values, distribution):
    """Return whether values may well be from a distribution (Kolmogorov and Smirnov)."""
    return stats.kstest(values, distribution.cdf).pvalue > 0.01


def test_what_is_drawn_stays_in_span():
    wild = {"median": 2, "spread": 2000}
    found = sorted(p.budget_mb for p in fleet(one(budget_mb=wild), keys=KEYS[:50]))
    assert (found[0], found[-1]) == (1e-6, 1e6)


def test_shares_are_probabilities():
    found = Counter(p.device for p in fleet({"toy": 0.2, "other": {"share": 0.8}}))
    assert stats.binomtest(found["toy"], N, 0.2).pvalue > 0.01
    assert found["toy"] + found["other"] == N
    assert {p.device for p in fleet({"toy": 1, "other": 0})} == {"toy"}


def test_a_device_depends_on_seed_and_key_alone():
    settings = read_fleet(
        {"devices": {"toy": {"share": 0.5, "budget_mb": [1, 2], "speed": [1, 2]}, "night": 0.5}}
    )
    all_of_them = open_fleet(settings, CATALOGUE, 1, KEYS[::-1])
    assert list(all_of_them) == KEYS
    few = open_fleet(settings, CATALOGUE, 1, KEYS[50:60])
    assert few == {key: all_of_them[key] for key in KEYS[50:60]}
    assert sample_profile(settings, CATALOGUE, 1, KEYS[7]) == all_of_them[KEYS[7]]
    assert open_fleet(settings, CATALOGUE, 2, KEYS) != all_of_them


def test_a_quantity_that_begins_to_vary_changes_no_other():
    before = fleet(one(budget_mb=[1, 2]), keys=KEYS[:50])
    after = fleet(one(budget_mb=[1, 2], memory_mb=[5, 9], link=[1, 3]), keys=KEYS[:50])
    assert [p.budget_mb for p in before] == [p.budget_mb for p in after]
    assert len({p.memory_mb for p in after}) == 50


def test_uniform_and_fixed():
    budgets = [p.budget_mb for p in fleet(one(budget_mb=[1.2, 1.6]))]
    assert is_from(budgets, stats.uniform(1.2, 0.4))
    assert {p.memory_mb for p in fleet(one(memory_mb=7), keys=KEYS[:5])} == {7}
    assert {p.budget_mb for p in fleet(one(), keys=KEYS[:5])} == {DEVICE.budget_mb}
    assert {p.budget_mb for p in fleet(one(budget_mb=[3, 3]), keys=KEYS[:5])} == {3}


def test_log_normal_speed_scales_every_depth():
    profiles = fleet(one(speed={"median": 2, "spread": 0.3}))
    speeds = np.array([p.macs_per_s[8] for p in profiles]) / DEVICE.macs_per_s[8]
    assert is_from(speeds, stats.lognorm(0.3, scale=2))
    for p, speed in zip(profiles[:50], speeds, strict=False):
        assert p.macs_per_s == pytest.approx(
            {bits: rate * speed for bits, rate in DEVICE.macs_per_s.items()}
        )
        assert p.joules_per_gmac == DEVICE.joules_per_gmac


def test_normal_numbers_above_zero():
    budgets = [p.budget_mb for p in fleet(one(budget_mb={"mean": 1, "std": 1}))]
    assert min(budgets) > 0
    assert is_from(budgets, stats.truncnorm(-1, math.inf, loc=1, scale=1))
    assert {p.budget_mb for p in fleet(one(budget_mb={"mean": 3, "std": 0}))} == {3}


def test_choices_and_their_weights():
    budgets = [p.budget_mb for p in fleet(one(budget_mb={"choices": [2, 3, 4]}))]
    assert stats.chisquare(list(Counter(budgets).values())).pvalue > 0.01
    assert set(budgets) == {2, 3, 4}
    weights = {"choices": [2, 3, 4], "weights": [1, 0, 3]}
    found = Counter(p.budget_mb for p in fleet(one(budget_mb=weights)))
    assert set(found) == {2, 4}
    assert stats.binomtest(found[2], N, 0.25).pvalue > 0.01


def test_links_batteries_and_bit_depths():
    profile = fleet(one(link=2, battery=0.5, bit_depths=[8]), keys=["a"])[0]
    assert (profile.down_mbit, profile.up_mbit) == (DEVICE.down_mbit * 2, DEVICE.up_mbit * 2)
    assert profile.battery_j == 500
    assert profile.bit_depths == (8,)
    mains = fleet({"other": {"share": 1, "battery": 0.5}}, keys=["a"])[0]
    assert mains.battery_j is None
    depths = fleet(one(bit_depths={"choices": [[8], [8, 4]]}), keys=KEYS[:50])
    assert {p.bit_depths for p in depths} == {(8,), (4, 8)}
    with pytest.raises(FedsimError, match=r"toy.macs_per_s: there is none for 5 bits"):
        fleet(one(bit_depths=[5]), keys=["a"])


def test_windows_are_spread():
    starts = [(p.available[0][0] - 20) % 24 for p in fleet({"night": 1})]
    assert is_from(starts, stats.uniform(0, 4))
    assert {p.available[0][1] for p in fleet({"night": 1}, keys=KEYS[:20])} == {9}


@pytest.mark.parametrize("rho", [0.6, -0.9, 1.0])
def test_correlated_quantities(rho):
    # Spearman's rank correlation of a Gaussian copula is 6 / pi asin(rho / 2).
    profiles = fleet(
        one(budget_mb=[1, 2], speed={"median": 1, "spread": 0.5}, link=[1, 2]),
        correlation={"budget_mb": {"speed": rho}},
    )
    budgets = [p.budget_mb for p in profiles]
    found = stats.spearmanr(budgets, [p.macs_per_s[8] for p in profiles]).statistic
    assert found == pytest.approx(6 / math.pi * math.asin(rho / 2), abs=0.05)
    others = stats.spearmanr(budgets, [p.down_mbit for p in profiles]).statistic
    assert others == pytest.approx(0, abs=0.08)
    # What they are together changes nothing of what each is.
    assert is_from(budgets, stats.uniform(1, 1))


BAD = [
    ({}, "neither of devices and trace"),
    ({"devices": {"toy": 1}, "trace": "x.csv"}, "both of devices and trace"),
    ({"trace": "x.csv", "correlation": {"speed": {"link": 1}}}, "a trace has its own"),
    ({"devices": {}}, "name at least one class"),
    ({"devics": {"toy": 1}}, r"fleet.devics: there is no 'devics' here: did you mean 'devices'"),
    ({"devices": {"toy": 0.5}}, "the shares add up to 0.5"),
    ({"devices": {"toy": 1.5, "other": -0.5}}, r"fleet.devices.other.share: -0.5 is out of range"),
    ({"devices": {"toy": {"budget_mb": 1}}}, "fleet.devices.toy: it has no share"),
    ({"devices": one(budget=3)}, r"fleet.devices.toy.budget: there is no 'budget' here"),
    ({"devices": one(budget_mb=[1, 2, 3])}, r"toy.budget_mb: \[1, 2, 3\] is no \[low, high\]"),
    ({"devices": one(budget_mb=[2, 1])}, "runs down"),
    ({"devices": one(budget_mb=0)}, "toy.budget_mb: 0 is out of range"),
    ({"devices": one(budget_mb="x")}, "toy.budget_mb: 'x' is no number"),
    ({"devices": one(speed={"median": 1})}, "toy.speed: median needs spread"),
    ({"devices": one(speed={"median": 1, "std": 1})}, r"toy.speed: there is no 'std' here"),
    ({"devices": one(speed={"spread": 1})}, "toy.speed: it is no distribution"),
    ({"devices": one(speed={"mean": -1, "std": 1})}, "toy.speed: -1 is out of range"),
    ({"devices": one(speed={"choices": []})}, "toy.speed: choices: list at least one"),
    ({"devices": one(speed={"choices": [1], "weights": [1, 2]})}, "there are 1 choices"),
    ({"devices": one(speed={"choices": [1, 2], "weights": [0, 0]})}, "all are zero"),
    ({"devices": one(bit_depths=8)}, "toy.bit_depths: 8 is no list"),
    ({"devices": one(bit_depths=[1])}, "toy.bit_depths: 1 is no bit depth"),
    ({"devices": one(bit_depths={"choices": [4, 8]})}, "toy.bit_depths: 4 is no list"),
]


@pytest.mark.parametrize(("raw", "message"), BAD)
def test_what_is_wrong_with_a_fleet(raw, message):
    with pytest.raises(FedsimError, match=message):
        read_fleet(raw)


VARYING = one(budget_mb=[1, 2], speed=[1, 2], link=[1, 2])


@pytest.mark.parametrize(
    ("correlation", "message"),
    [
        ({"budget_mb": {"speed": 1.2}}, r"fleet.correlation.budget_mb.speed: 1.2 is no number"),
        ({"budget_mb": {"spede": 0.2}}, "did you mean 'speed'"),
        ({"budgt_mb": {"speed": 0.2}}, "did you mean 'budget_mb'"),
        ({"speed": {"speed": 0.2}}, "there is no 'speed' here"),
        ({"speed": 0.2}, r"write it as speed: \{speed"),
        ({"speed": {"battery": 0.2}}, "battery varies in no class"),
        ({"speed": {"link": 0.2}, "link": {"speed": 0.3}}, "0.2 the other way round"),
        # Two that are almost the same cannot go opposite ways with a third.
        (
            {"budget_mb": {"speed": 0.9, "link": 0.9}, "speed": {"link": -0.9}},
            "cannot all hold at once",
        ),
    ],
)
def test_what_is_wrong_with_a_correlation(correlation, message):
    with pytest.raises(FedsimError, match=message):
        read_fleet({"devices": VARYING, "correlation": correlation})


def test_correlations_that_hold_exactly():
    # Singular, but possible: three that are one.
    ones = {"budget_mb": {"speed": 1, "link": 1}, "speed": {"link": 1}}
    p = fleet(VARYING, keys=KEYS[:1], correlation=ones)[0]
    assert p.budget_mb == pytest.approx(p.macs_per_s[8] / DEVICE.macs_per_s[8])
    assert p.budget_mb == pytest.approx(p.down_mbit / DEVICE.down_mbit)


def test_a_class_that_there_is_not():
    with pytest.raises(FedsimError, match="there is no device class 'toys': did you mean 'toy'"):
        check_fleet(read_fleet({"devices": {"toys": 1}}), CATALOGUE)
    with pytest.raises(FedsimError, match="there is no device class 'toys'"):
        fleet({"toys": 1}, keys=["a"])
