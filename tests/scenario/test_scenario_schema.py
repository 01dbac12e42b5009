"""The JSON Schema, budgets and sources by client, and scenarios by name."""

import json

import jsonschema
import pytest
from pydantic import ValidationError

from fedsim.errors import FedsimError
from fedsim.scenario import Scenario, find_scenario, json_schema, list_scenarios
from fedsim.scenario.settings import named_choices
from fedsim.study.clients import check_sources
from fedsim.study.devices import Devices, Limits

BASE = {
    "name": "a",
    "model": {"id": "m"},
    "corpus": {"path": "p", "group_by": "speaker"},
    "clients": {"budget_mb": 40},
    "methods": ["fp32"],
}


def scenario(**parts):
    return Scenario.model_validate({**BASE, **parts})


def budgets(clients, keys):
    devices = Devices(scenario(clients=clients), keys)
    return {key: limits.budget_bytes for key, limits in devices.items()}


def valid(document):
    return jsonschema.Draft202012Validator(json_schema()).is_valid(document)


def test_json_schema_agrees_with_the_loader_about_what_editors_see():
    json.dumps(json_schema())
    assert valid(BASE)
    assert valid({**BASE, "methods": ["fp32", {"allocation": "myqasr", "calibration": "minmax"}]})
    assert valid({**BASE, "methods": [{"allocation": "myqasr", "tuned_on": ["own", "x"]}]})
    for budget in (40, 40.5, [30, 40], {"x": 3}):
        assert valid({**BASE, "clients": {"budget_mb": budget}})
    assert not valid({**BASE, "sed": 1})
    assert not valid({**BASE, "clients": {"budget_mb": -1}})
    assert not valid({**BASE, "model": {}})
    assert not valid({**BASE, "corpus": {"path": "p", "group_by": "spkr"}})


def test_every_key_is_explained():
    schema = json_schema()
    for part in [schema, *schema["$defs"].values()]:
        for name, field in part["properties"].items():
            assert "description" in field or "$ref" in str(field), name


def test_the_json_schema_lists_the_names_of_registries_and_accepts_others():
    """A plug-in that adds a name may not be installed where a file is edited."""
    text = json.dumps(json_schema())
    for key, choices in named_choices(Scenario):
        assert f'"enum": {json.dumps(choices.names())}' in text, key
    assert valid({**BASE, "methods": ["fp32", "a-plug-in"]})
    assert valid({**BASE, "quantization": {"sensitivity": "a-plug-in"}})


def test_budgets_in_bytes_by_hand():
    assert budgets({"budget_mb": 1.5}, ["b", "a"]) == {"a": 1_572_864, "b": 1_572_864}
    dealt = budgets({"budget_mb": [1, 2]}, ["c", "a", "b"])
    assert dealt == {"a": 2**20, "b": 2**21, "c": 2**20}
    named = {"budget_mb": {"en": 1, "es": 0.25}}
    assert budgets(named, ["en", "es"]) == {"en": 2**20, "es": 2**18}
    with pytest.raises(FedsimError, match=r"client 'ess' .*'es'"):
        budgets(named, ["en", "ess"])


def test_a_device_of_a_fleet_has_its_own_limits():
    toy = {"share": 1, "budget_mb": 1.5, "memory_mb": 2, "bit_depths": [4, 8]}
    study = scenario(clients={}, fleet={"devices": {"watch": toy}}, methods=["uniform"])
    assert Devices(study, ["a"])["a"] == Limits(1_572_864, (4, 8), 2**21)
    own = scenario(
        clients={"budget_mb": 3, "bit_depths": [2, 8]},
        fleet={"devices": {"watch": toy}},
        methods=["uniform"],
    )
    assert Devices(own, ["a"])["a"] == Limits(3 * 2**20, (8,), 2**21)
    none = scenario(
        clients={"bit_depths": [5]}, fleet={"devices": {"watch": toy}}, methods=["uniform"]
    )
    with pytest.raises(FedsimError, match=r"'a': .*watch .*4, 8.* 5"):
        Devices(none, ["a"])["a"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"clients": {}}, "add it, or a fleet whose devices have budgets"),
        ({"clients": {}, "fleet": {"devices": {"watch": 1}}}, "makes a quantized model: add one"),
        ({"fleet": {"devices": {"watch": 0.9}}, "methods": ["uniform"]}, "add up to 0.9"),
        ({"fleet": {}, "methods": ["uniform"]}, "neither of devices and trace"),
        ({"clock": {"policy": "drop"}}, "'drop' needs deadline_s"),
        ({"clock": {"begin_hour": 24}}, "less than 24"),
    ],
)
def test_fleets_and_clocks_that_are_rejected(parts, message):
    with pytest.raises(ValidationError, match=message):
        scenario(**parts)


def test_sources_are_checked_against_the_clients_found():
    study = scenario(methods=[{"allocation": "myqasr", "tuned_on": ["own", "each", "ru"]}])
    check_sources(study, ["ru", "en"])
    with pytest.raises(FedsimError, match=r"methods.0.tuned_on.2: 'ru' .*known: each"):
        check_sources(study, ["es", "en"])
    with pytest.raises(
        FedsimError, match=r"methods.0.tuned_on.1: 'each' .*add clients, or use own"
    ):
        check_sources(study, ["ru"])


def test_methods_that_overlap_are_refused_and_others_are_not():
    both = [{"allocation": "myqasr", "calibration": c} for c in ("minmax", "cosine")]
    assert len(scenario(methods=both).methods) == 2
    orders = [{"allocation": "myqasr", "order": o} for o in ("descending", "ascending")]
    assert len(scenario(methods=orders).methods) == 2
    ways = [{"allocation": "myqasr", "rounding": r} for r in ("nearest", "scaled", "compensated")]
    assert len(scenario(methods=ways).methods) == 3
    moments = [{"allocation": "myqasr", "moments": whose} for whose in ("public", "own", "blend")]
    assert len(scenario(methods=moments).methods) == 3
    with pytest.raises(ValueError, match=r"compensated with blend moments, .*remove one"):
        scenario(methods=[ways[2], moments[2]])
    overlap = [both[0], {"allocation": "myqasr", "calibration": ["cosine", "minmax"]}]
    with pytest.raises(ValueError, match=r"methods.0 \(myqasr/minmax, .* tuned on own.*remove one"):
        scenario(methods=overlap)


def test_a_scenario_is_found_by_path_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "scenarios"
    folder.mkdir()
    (folder / "voices.yaml").write_text("name: voices\ndescription: |\n  One line.\n  Two.\n")
    (folder / "broken.yaml").write_text("name: [\n")
    (folder / "notes.txt").write_text("no scenario")
    assert find_scenario("voices").samefile(folder / "voices.yaml")
    assert find_scenario("voices.yaml").samefile(folder / "voices.yaml")
    assert find_scenario(folder / "voices.yaml") == folder / "voices.yaml"
    with pytest.raises(FedsimError, match="'voice': did you mean 'voices'"):
        find_scenario("voice")
    with pytest.raises(FedsimError, match="'other/voices"):
        find_scenario("other/voices.yaml")
    with pytest.raises(FedsimError, match="name the YAML file in it"):
        find_scenario("scenarios")
    listed = dict(list_scenarios())
    assert listed["voices"] == "One line."
    assert listed["broken"].startswith("cannot be read: ")
    assert "notes" not in listed
