from __future__ import annotations

import paper
import pytest
from plan_toys import label, myqasr, scenario

from fedsim.scenario.cells import all_cells, cells_of, needs_others, needs_profiles, sources
from fedsim.scenario.methods import MethodSettings
from fedsim.scenario.quantization import QuantizationSettings

KEYS = ["ann", "bob", "cyd"]


def settings(**options) -> MethodSettings:
    return MethodSettings.model_validate(options)


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
    quantization = QuantizationSettings(**paper.QUANTIZATION)
    resolved = settings(**method).resolved(quantization)
    assert cells_of(resolved, quantization) == cells


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
