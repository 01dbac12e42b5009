from __future__ import annotations

from pathlib import Path

import pytest
from fleet_toys import write_class

from fedsim.errors import FedsimError
from fedsim.fleet import load_catalogue

CLASSES = (
    *("watch", "earbuds", "glasses", "low_phone", "mid_phone"),
    *("high_phone", "tablet", "laptop", "car", "hub"),
)


def test_the_built_in_classes():
    catalogue = load_catalogue()
    assert tuple(catalogue) == CLASSES
    for name, found in catalogue.items():
        profile = found.profile
        assert profile.device == name
        # Every class can sense, in full precision or by a proxy of 8 bits.
        assert {8, 32} <= profile.macs_per_s.keys()
        assert 8 in profile.bit_depths
        assert profile.macs_per_s[8] >= profile.macs_per_s[32]
        assert profile.joules_per_gmac[8] <= profile.joules_per_gmac[32]
        assert profile.budget_mb <= profile.memory_mb
        assert {fact.quantity.split(".")[0] for fact in found.facts} >= {"budget_mb", "macs_per_s"}
        for fact in found.facts:
            assert fact.value
            assert len(fact.source.removeprefix("assumed: ")) > 5
    assert {found.profile.bit_depths for found in catalogue.values()} >= {
        (8,),
        (4, 8),
        (2, 4, 8),
        tuple(range(2, 9)),
    }
    sourced = [f for c in catalogue.values() for f in c.facts if not f.source.startswith("assumed")]
    assert len(sourced) > 50


def test_numbers_that_follow_from_their_sources():
    catalogue = load_catalogue()
    low, hub, high = (catalogue[name].profile for name in ("low_phone", "hub", "high_phone"))
    assert low.macs_per_s[32] == pytest.approx(300e6 / 0.079, rel=0.01)
    assert low.macs_per_s[8] == pytest.approx(300e6 / 0.079 * 95.7 / 70.5, rel=0.01)
    assert low.joules_per_gmac[32] == pytest.approx((5.1 - 1.9) / 3.8, rel=0.01)
    assert hub.macs_per_s[32] == pytest.approx(300e6 / 0.044, rel=0.01)
    assert hub.macs_per_s[8] == pytest.approx(300e6 / 0.0025, rel=0.01)
    assert high.macs_per_s[4] == pytest.approx(260.5 * 1.23e9, rel=0.01)
    assert catalogue["laptop"].profile.macs_per_s[16] == pytest.approx(262.65 * 6.74e9, rel=0.01)
    assert low.battery_j == pytest.approx(5 * 3.85 * 3600, rel=0.01)
    assert hub.joules_per_mb == pytest.approx(
        (6.45e-7 - 1.27e-10 * (5000 - 2130)) * 8 * 2**20, rel=0.01
    )
    for name in ("watch", "low_phone", "mid_phone", "high_phone"):  # Huang et al.: watts by Mbit/s
        phone = catalogue[name].profile
        watts = 0.05197 * phone.down_mbit + 1.288
        seconds = 8 * 2**20 / 1e6 / phone.down_mbit  # of an MB
        assert phone.joules_per_mb == pytest.approx(watts * seconds, rel=0.01)


def test_a_class_of_ones_own(tmp_path):
    found = load_catalogue(write_class(tmp_path))["radio"]
    profile = found.profile
    assert (profile.device, profile.budget_mb, profile.battery_j) == ("radio", 4, None)
    assert profile.bit_depths == (4, 8)
    assert profile.macs_per_s == {4: 2e9, 5: 2e9, 6: 2e9, 7: 2e9, 8: 2e9, 32: 1e9}
    assert profile.joules_per_gmac == dict.fromkeys(profile.macs_per_s, 0.5)
    assert profile.available == ((22, 9),)
    facts = {fact.quantity: fact for fact in found.facts}
    assert facts["budget_mb"].source == "a shop"
    assert (facts["macs_per_s.4-8"].value, facts["macs_per_s.4-8"].unit) == ("2e+09", "MAC/s")
    assert facts["memory_mb"].source == "assumed: a guess"
    assert facts["battery_j"].value == "mains"
    assert facts["bit_depths"].value == "4 8"
    assert facts["available"].value == "22-7"


def test_a_built_in_class_with_another_number(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("hub:\n  budget_mb: {value: 3, source: mine}\n", encoding="utf-8")
    before, after = load_catalogue()["hub"], load_catalogue(path)["hub"]
    assert after.profile.budget_mb == 3
    assert after.profile.macs_per_s == before.profile.macs_per_s
    assert [f.source for f in after.facts if f.quantity == "budget_mb"] == ["mine"]
    assert load_catalogue(path)["watch"] == load_catalogue()["watch"]


A_SHOP = '{value: 4, source: "a shop"}'
REPLACED = [
    # Text of the catalogue, what replaces it, and the key and the remedy in the error.
    ("memory_mb", "memry_mb", r"mine.yaml:3: radio.memry_mb: .*'memory_mb'"),
    ('  up_mbit: {value: 5, assumed: "a guess"}\n', "", "mine.yaml:1: radio.up_mbit .*: add it"),
    (A_SHOP, "{value: -4, source: x}", "mine.yaml:2: radio.budget_mb: -4 .*above zero"),
    (A_SHOP, "{value: 0, source: x}", "budget_mb: 0 .*above zero"),
    *(
        (A_SHOP, f"{{value: {value}, source: x}}", "budget_mb: .* not a finite number: write one")
        for value in (".inf", ".nan", "x", "true", "[4]")
    ),
    (A_SHOP, "4", r"budget_mb: 4 .*: write \{value"),
    (A_SHOP, "{value: 4}", "budget_mb: .*: add either source, or assumed"),
    (A_SHOP, "{value: 4, source: ''}", "add either source, or assumed"),
    (A_SHOP, "{value: 4, source: x, assumed: y}", "add either source, or assumed"),
    ('source: "a shop"', 'sorce: "a shop"', "budget_mb: .*'sorce'.*'source'"),
    *(
        ("[4, 8]", depths, f"mine.yaml:4: radio.bit_depths: {first}.* from 2 to 16")
        for depths, first in (("[4, 17]", "17"), ("[1, 8]", "1"), ("[]", "the list is empty"))
    ),
    ("[4, 8]", "[4, 4]", "radio.bit_depths: 4 bits are listed twice: remove one"),
    ("[4, 8]", "8", r"radio.bit_depths: 8 .*: write one such as \[4, 8\]"),
    ("[4, 8]", "[3, 8]", "mine.yaml:6: radio.macs_per_s: .* 3 bits: add one"),
    ('    32: {value: 1e9, source: "measured"}\n', "", r"macs_per_s: .*\(32\): add one"),
    *(
        ("4-8:", f"{depths}:", f"radio.macs_per_s: '{depths}' .*: use one from 2 to 16")
        for depths in ("4-18", "8-4", "four", "1", "32-33", "-4")
    ),
    ("    32:", "    5: {value: 1, source: x}\n    32:", "macs_per_s: 5 bits .* twice: remove one"),
    ("value: 2e9", "value: -2", "radio.macs_per_s: 4-8: -2 .*above zero"),
    ("{value: 0.5, assumed", "{values: 0.5, assumed", "joules_per_gmac: 'values' .*from 2 to 16"),
    ("radio:", "all:", "mine.yaml:1: 'all' .*: rename this class"),
    ("22-7", "22", "radio.available: '22' .*such as 22-7"),
]


def test_a_mistake_in_a_catalogue_is_located(tmp_path):
    for old, new, message in REPLACED:
        with pytest.raises(FedsimError, match=message):
            load_catalogue(write_class(tmp_path, old=old, new=new))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "write a mapping from class to numbers"),
        ("hub: 5\n", "mine.yaml:1: hub: .*write a mapping of numbers"),
        ("hub: {a: [}\n", "mine.yaml:1"),
        ("hub:\n  macs_per_s: {value: 4, source: x}\n", "give one for each bit depth and for 32"),
        ("hub:\n  macs_per_s: 4\n", "write one from bit depth"),
        ("hub:\n  bit_depths: {value: [2, 8], source: x}\n", "hub.macs_per_s: .* 2 bits: add one"),
        ("new:\n  budget_mb: {value: 1, source: x}\n", "mine.yaml:1: new.memory_mb .*: add it"),
    ],
)
def test_a_file_that_is_not_a_catalogue(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FedsimError, match=message):
        load_catalogue(path)


def test_a_file_that_is_missing():
    with pytest.raises(FedsimError, match=r"nowhere\.yaml: .*check the path"):
        load_catalogue(Path("nowhere.yaml"))
