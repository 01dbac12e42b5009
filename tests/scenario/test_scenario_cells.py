from __future__ import annotations

import pytest
from plan_toys import label, myqasr, scenario

from fedsim.scenario.cells import all_cells, cells_of, needs_others, needs_profiles, sources
from fedsim.scenario.methods import MethodSettings
from fedsim.scenario.quantization import QuantizationSettings

KEYS = ["ann", "bob", "cyd"]


PAPER = QuantizationSettings(rounding="nearest")


def settings(quantization=PAPER, **options) -> MethodSettings:
    return MethodSettings.model_validate(options).resolved(quantization)


@pytest.mark.parametrize(
    ("method", "cells"),
    [
        ({"allocation": "uniform"}, [label("uniform", "cosine")]),
        (
            {"allocation": "myqasr", "calibration": ["minmax", "none"]},
            [label("myqasr", "minmax"), label("myqasr", "none")],
        ),
        (
            {"allocation": "myqasr", "order": "ascending"},
            [label("myqasr", "cosine", "ascending", name="myqasr-asc")],
        ),
        (
            {"allocation": "shuffled", "draws": 2, "calibration": ["minmax", "none"]},
            [
                label("shuffled", "minmax", draw=0, name="shuffled-1"),
                label("shuffled", "minmax", draw=1, name="shuffled-2"),
                label("shuffled", "none", draw=0, name="shuffled-1"),
                label("shuffled", "none", draw=1, name="shuffled-2"),
            ],
        ),
    ],
)
def test_cells_of_a_method(method, cells):
    assert cells_of(settings(**method), PAPER) == cells


def test_cells_of_ways_to_round():
    """A label names what differs from the section `quantization`, and nothing else."""
    blending = QuantizationSettings(moments="blend", activations="dynamic")
    ways = {"rounding": ["nearest", "compensated"], "moments": ["own", "blend"]}
    method = settings(blending, allocation="uniform", **ways)
    assert cells_of(method, blending) == [
        label("uniform", "dynamic", suffix="/nearest"),
        label("uniform", "dynamic", rounding="compensated", moments="own", suffix="/own"),
        label("uniform", "dynamic", rounding="compensated", moments="blend"),
    ]
    assert [c.rounded_by_device for c in cells_of(method, blending)] == [False, True, True]
    plain = settings(blending, allocation="uniform", calibration="minmax")
    (cell,) = cells_of(plain, blending)
    assert cell == label("uniform", "minmax", rounding="compensated", moments="blend")


def test_cells_of_a_scenario():
    """Each once, on however many clients' clips it is tuned; full precision is not a cell."""
    found = all_cells(scenario("fp32", "uniform", myqasr("own"), myqasr("other"), "shuffled"))
    assert [c.label for c in found] == ["uniform/cosine", "myqasr/minmax", "shuffled/cosine"]
    assert all_cells(scenario("fp32")) == []


@pytest.mark.parametrize(
    ("methods", "sensitivity", "others"),
    [
        (["fp32"], False, False),
        (["fp32", "uniform", "shuffled"], False, False),
        (["uniform", "myqasr"], True, False),
        (["reversed"], True, False),
        (["linear"], True, False),
        ([{"allocation": "uniform", "tuned_on": ["other"]}], False, True),
        ([myqasr("own", "each")], True, True),
        ([myqasr("bob")], True, True),
    ],
)
def test_what_a_scenario_needs(methods, sensitivity, others):
    assert needs_profiles(scenario(*methods)) == sensitivity
    assert needs_others(scenario(*methods)) == others


@pytest.mark.parametrize(
    ("words", "client", "found"),
    [
        (("own",), "bob", ["bob"]),
        (("other",), "ann", ["bob"]),
        (("other",), "bob", ["cyd"]),
        (("other",), "cyd", ["ann"]),  # round the ring
        (("each",), "bob", ["ann", "cyd"]),
        (("own", "other", "each"), "bob", ["bob", "cyd", "ann"]),  # nobody twice
        (("cyd", "own"), "cyd", ["cyd"]),
        (("cyd",), "ann", ["cyd"]),
    ],
)
def test_sources(words, client, found):
    assert sources(words, client, KEYS) == found


def test_everybody_is_somebodys_other():
    assert sorted(sources(("other",), key, KEYS)[0] for key in KEYS) == KEYS
