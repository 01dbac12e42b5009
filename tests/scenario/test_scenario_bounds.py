"""Numbers, lists and texts of any size: each has a bound, and errors fit on a screen."""

from __future__ import annotations

import pytest
from scenario_toys import SMALL

from fedsim.errors import MAX_LINE, MAX_LINES, nearest, on_a_screen
from fedsim.scenario import json_schema

UPPER = ("maximum", "exclusiveMaximum", "enum", "const")
CHECKED_TOGETHER = {"privacy bounds"}  # a range of quantiles, by its ends


def open_numbers(schema, place=()):
    """Places in a JSON Schema where a number has no upper bound."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number") and not any(k in schema for k in UPPER):
            yield place
        for key, below in schema.items():
            yield from open_numbers(below, (*place, key))
    elif isinstance(schema, list):
        for i, below in enumerate(schema):
            yield from open_numbers(below, (*place, i))


def test_every_number_has_an_upper_bound():
    found = {p for p in open_numbers(json_schema()) if "bounds" not in p}
    assert not found


HUGE = [
    ("corpus.test_clips=10000000000000000000", "must be at most 100000 "),
    ("corpus.tuning_clips=1" + "0" * 400, "must be at most 100000 "),
    ("methods.0={allocation: shuffled, draws: 1000000}", "must be at most 1000 "),
    ("clients.limit=1e19", "must be a whole number"),
    ("seed=9223372036854775808", "must be at most 9223372036854775807"),
    ("engine.workers=1000000", "must be at most 1024"),
    ("name=" + "x" * 101, "must have at most 100 characters"),
    ("methods=[" + "fp32, " * 101 + "]", "must have at most 100 items"),
    (
        "fleet={devices: {watch: {share: 1, speed: {choices: [1, 2], weights: [1, 1e308]}}}}",
        "must be at most 1000000000",
    ),
    ("methods.²=fp32", "has no item '²'"),
    ("methods.٠.draws=2", "has no item '٠'"),
    ("matrix={methods.².draws: [1]}", "this scenario has no such setting"),
    ("corpus.population={speakers: 900000}", "must be at most 100000"),
]


@pytest.mark.parametrize(("override", "words"), HUGE)
def test_a_number_that_nobody_means_is_refused_in_one_line(refuse, override, words):
    lines = refuse(SMALL, override)
    assert len(lines) == 1
    assert words in on_a_screen(lines[0])[0]


def test_models_are_counted_before_any_is_listed(refuse):
    many = "{allocation: shuffled, draws: 1000, calibration: [minmax, cosine], order: %s}"
    methods = ", ".join([many % "descending"] * 6)
    (line,) = refuse(SMALL, f"methods=[{methods}]")
    assert "12,000 models of each client are more than 10,000" in line


def test_an_error_fits_on_a_screen(refuse):
    values = ", ".join(f"x{i}" for i in range(5_000))
    lines = on_a_screen("\n".join(refuse(SMALL, f"clients.budget_mb=[{values}]")))
    assert len(lines) == MAX_LINES + 1
    assert lines[-1].endswith(" more like these")
    (line,) = on_a_screen("\n".join(refuse(SMALL, "corpus.group_by=" + "y" * 10_000)))
    assert len(line) <= MAX_LINE
    assert on_a_screen("a\x1b[2Jb\tc") == ["a\\x1b[2Jb\tc"]
    assert len(nearest("z" * 100_000, ["z" * 100_001, "b"])) < 200


def test_client_keys_are_compared_in_the_composed_form(load, refuse):
    override = "clients={select: [e\u0301, b], budget_mb: {\u00e9: 3, b: 4}}"
    scenario = load(SMALL, override)
    assert scenario.clients.select == ("\u00e9", "b")
    (line,) = refuse(SMALL, "clients.select=[e\u0301, \u00e9]")
    assert "is listed twice" in line
