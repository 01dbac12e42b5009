"""Every mistake in fedsim's own words: in a file, in a matrix, on a command line."""

from __future__ import annotations

import copy
import json
import re
from typing import Annotated

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from properties import examples
from pydantic import Field, ValidationError

from fedsim.base import yamltree
from fedsim.cli import main
from fedsim.errors import FedsimError
from fedsim.scenario import Scenario, load_scenario, scenario_from_json
from fedsim.scenario.explain import sentences
from fedsim.scenario.matrix import expand
from fedsim.scenario.settings import Settings

RECORDED = {
    "name": "a",
    "description": "b",
    "seed": 3,
    "model": {"id": "m", "window_s": 10, "keep": ["x"], "batch_size": 4},
    "corpus": {
        "kind": "hub",
        "path": "p",
        "config": {"en": "english", "es": "spanish"},
        "split": "test",
        "columns": {"audio": "sound"},
        "leave_out": ["_silence_"],
        "group_by": "language",
        "tuning_clips": 4,
        "max_seconds": 5.5,
        "convert": True,
    },
    "clients": {
        "select": ["en", "es"],
        "limit": 3,
        "budget_mb": {"en": 40, "es": 41.5},
        "bit_depths": [4, 8],
    },
    "quantization": {
        "weights": "per_tensor",
        "activation_bits": 8,
        "sensitivity": "mean",
        "rounding": "compensated",
        "moments": "public",
        "own_weight": 0.25,
        "public_clips": {"path": "q", "group_by": "speaker"},
        "public_count": 16,
    },
    "methods": [
        "fp32",
        {"allocation": "myqasr", "calibration": ["minmax", "cosine"], "tuned_on": ["own", "other"]},
        {"allocation": "shuffled", "draws": 3, "rounding": ["nearest"]},
    ],
    "privacy": {"release": "values", "bits": 3, "layers": [0, 2], "bounds": [0.1, 0.9]},
    "engine": {"kind": "ray", "workers": 2, "threads": 1},
    "save_models": True,
    "matrix": {"quantization.activation_bits": [6, 8]},
}
DEVICES = {
    "name": "b",
    "model": {"id": "m"},
    "corpus": {
        "kind": "voices",
        "group_by": "speaker",
        "population": {"speakers": 4, "first": 1, "languages": ["en"], "topics": ["music"]},
    },
    "fleet": {
        "devices": {
            "watch": 0.5,
            "car": {
                "share": 0.25,
                "budget_mb": [1, 2],
                "speed": {"median": 1, "spread": 0.3},
                "link": {"mean": 1, "std": 0.3},
                "battery": {"choices": [1, 2], "weights": [1, 3]},
                "bit_depths": [4, 8],
            },
            "hub": {"share": 0.25, "bit_depths": {"choices": [[4], [8]]}, "memory_mb": 6},
        },
        "correlation": {"speed": {"link": 0.5}},
        "sensing": "proxy",
        "clip_s": 5,
    },
    "clock": {"policy": "extend", "deadline_s": 60, "goal": 0.5, "egress_mbit": 10},
    "faults": [{"kind": "delay", "share": 0.1, "seconds": [1, 5]}, {"kind": "crash", "share": 0.1}],
    "retries": {"attempts": 2, "timeout_s": 60},
    "privacy": {
        "release": "noisy",
        "epsilon": 2,
        "budget": {"epsilon": 3.5, "delta": 0.1},
        "cohort": {"size": 4, "threshold": 3},
    },
    "methods": ["uniform"],
}
VALUES = st.sampled_from(
    [
        *(None, True, False, 0, -1, 1, 2, 17, 10**9, 10**400, 0.5, -0.5, 1e308, 1e-9),
        *(float("inf"), float("nan"), "", "x", "a/b", "1", "noisy", "voices", "words"),
        *([], [1], [2, 1], [1, 2, 3], ["x"], ["x", "x"], [None], [[]], [[4], 8], [{}]),
        *({}, {"x": 1}, {"share": 1}, {"median": 1}, {"std": "x"}, {"choices": 3}, {"": None}),
        *({"weights": [0]}, {"allocation": []}, {"speed": {"speed": 1}}, {"kind": "delay"}),
    ]
)
OTHERS = ("input ", "validation error", "pydantic", "type=", "value error", "required", " should ")
"""Words of pydantic that fedsim does not use in its sentences, in lower case."""
thorough = settings(max_examples=examples(150), deadline=None, derandomize=True, database=None)


def places(value, path=()):
    """Yield the path of every value inside a document."""
    below = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in below:
        yield (*path, key)
        if isinstance(part, dict | list):
            yield from places(part, (*path, key))


PLACES = [(base, path) for base in (RECORDED, DEVICES) for path in places(base)]


def changed(base, path, action, value):
    """Return a document with a value replaced, a key added beside it, or left out."""
    document = copy.deepcopy(base)
    above = document
    for key in path[:-1]:
        above = above[key]
    if action == "replace":
        above[path[-1]] = value
    elif action == "remove":
        del above[path[-1]]
    elif isinstance(above, dict):
        above["sped"] = value
    else:
        above.append(value)
    return document


def check_words(line):
    line = line.replace("encoder input", "")  # in the description of model.window_s
    assert not any(word in line.lower() for word in OTHERS), line


def test_the_documents_that_are_changed_are_valid(tmp_path):
    for document in (RECORDED, DEVICES):
        (tmp_path / "s.yaml").write_text(yamltree.dump(document))
        load_scenario(tmp_path / "s.yaml")


@thorough
@given(
    place=st.sampled_from(PLACES),
    action=st.sampled_from(["replace", "replace", "replace", "add", "remove"]),
    value=VALUES,
)
@example((DEVICES, ("faults", 0, "seconds")), "replace", [1, 2, 3])
@example((DEVICES, ("fleet", "devices", "car", "budget_mb")), "replace", 10**400)
def test_a_mistake_in_a_file_has_its_line_and_fedsims_words(tmp_path_factory, place, action, value):
    path = tmp_path_factory.getbasetemp() / "mutant.yaml"
    path.write_text(yamltree.dump(changed(*place, action, value)), encoding="utf-8")
    try:
        load_scenario(path)
    except FedsimError as error:
        lines = str(error).splitlines()
        assert len(lines) == len(set(lines))
        for line in lines:
            where, sentence = re.fullmatch(r".*mutant\.yaml:(\d+): (.*)", line).groups()
            assert 1 <= int(where) <= len(path.read_text().splitlines())
            assert len(sentence.split(":")) > 1, sentence  # what is wrong, and what to do
            check_words(sentence)


@thorough
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_a_mistake_in_a_matrix_is_in_fedsims_words(place, value):
    base, path = place
    key = ".".join(map(str, path))
    if path[0] in ("matrix", "name", "description", "engine", "save_models"):
        return
    document = {**base, "matrix": {key: [value]}}
    try:
        scenario = Scenario.model_validate(document)
        expand(scenario)
    except FedsimError as error:
        sentence = str(error)
        assert sentence.startswith(f"matrix: {key}")
        check_words(sentence.removeprefix(f"matrix: {key}={value!r}"))


def test_a_mistake_in_a_matrix_names_the_key_the_value_and_the_remedy():
    def refused(key, value):
        with pytest.raises(FedsimError) as caught:
            expand(Scenario.model_validate({**DEVICES, "matrix": {key: [value]}}))
        return str(caught.value)

    text = refused("fleet.devices.car.speed", {"median": 0, "spread": 1})
    assert "fleet.devices.car.speed.median is 0: must be at least 1e-06" in text
    text = refused("fleet.devices.watch", 0.75)
    assert text == (
        "matrix: fleet.devices.watch=0.75: fleet.devices: shares add up to 1.25; make them add up"
        " to 1"
    )
    text = refused("clock.policy", "drp")
    assert "clock.policy is 'drp': must be wait or drop" in text
    assert "did you mean 'drop'" in text


def test_mistakes_on_the_command_line_name_their_options(capsys):
    for words, start in (
        ("--first -1", "--first is -1: must be at least 0"),
        ("--genders femal", "--genders is 'femal': must be female or male; did you mean 'female'"),
        ("--genders male x", "--genders is 'x': must be female or male"),
        ("--languages en en", "--languages: 'en' is listed twice: remove one"),
        ("--seed -1", "--seed is -1: must be at least 0"),
        ("--sentences=", "--sentences is '': must not be empty"),
    ):
        assert main(["voices", *words.split()]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {start}"), error
        check_words(error)


def test_a_scenario_of_another_version_is_refused_in_fedsims_words():
    sent = Scenario.model_validate(DEVICES).model_dump(mode="json")
    sent["fleet"]["clip_s"] = 0
    sent["news"] = 1
    for text, words in (
        (json.dumps(sent), "fleet.clip_s is 0: must be more than 0"),
        (json.dumps(sent), "unknown key 'news'"),
        ("{", "the scenario is '{': must be JSON"),
        ("[]", "the scenario is an empty list: must be a mapping"),
    ):
        with pytest.raises(FedsimError, match="install the version that sent it") as caught:
            scenario_from_json(text)
        assert words in str(caught.value)
        check_words(str(caught.value))


class Strange(Settings):
    """Has limits of kinds that no scenario has."""

    even: Annotated[int, Field(multiple_of=2)] = 2
    few: dict[str, int] = Field(default={}, max_length=1)
    several: tuple[int, ...] = Field(default=(1, 2), min_length=2, max_length=3)
    either: bytes | None = Field(default=None, description="bytes")


def test_a_kind_of_mistake_that_is_new_is_not_told_in_pydantics_words():
    with pytest.raises(ValidationError) as caught:
        Strange.model_validate(
            {"even": 3, "few": {"a": 1, "b": 2}, "several": (1,), "either": 3, "oder": 1}
        )
    assert sentences(caught.value, Strange) == [
        "even is 3: not allowed here",
        "few is a mapping: must have at most 1 item",
        "several is a list of 1: must have at least 2 items",
        "either is 3: not allowed here (bytes)",
        "unknown key 'oder': known: either, even, few, several",
    ]
    with pytest.raises(ValidationError) as caught:
        Strange.model_validate({"several": (1, 2, 3, 4), "even": True})
    assert sentences(caught.value, Strange, lambda path: f"--{path[0]}") == [
        "--even is true: must be a whole number",
        "--several is a list of 4: must have at most 3 items",
    ]
