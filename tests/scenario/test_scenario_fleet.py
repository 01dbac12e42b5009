"""The section `fleet` of a scenario, its clock and its faults: what may be written, what it means,
what is wrong with the rest, and what the JSON Schema knows of it."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples

from fedsim.errors import FedsimError
from fedsim.fleet import FleetSettings, Share, load_catalogue, open_fleet
from fedsim.fleet.distributions import (
    QUANTITIES,
    Choices,
    Constant,
    LogNormal,
    TruncatedNormal,
    Uniform,
    correlation_root,
)
from fedsim.fleet.faults import FAULTS
from fedsim.fleet.work import POLICIES, ServerClock
from fedsim.scenario import Scenario, json_schema, load_scenario, scenario_from_json
from fedsim.scenario.clock import ClockSettings, FaultSettings, RetrySettings
from fedsim.scenario.fleet import DeviceSettings, FleetChoice, QuantityName

BASE = {
    "name": "a",
    "model": {"id": "m"},
    "corpus": {"path": "p", "group_by": "speaker"},
    "methods": ["uniform"],
}
TEXT = """\
name: a
model: {id: m}
corpus: {path: p, group_by: speaker}
methods: [uniform]
"""


def fleet(**settings) -> FleetChoice:
    found = Scenario.model_validate({**BASE, "fleet": settings}).fleet
    assert found is not None
    return found


def one(**quantities):
    return {"toy": {"share": 1, **quantities}}


@pytest.fixture
def refuse(tmp_path):
    """Return a function that adds lines to a scenario and gives the one line of its error."""

    def line(added: str) -> str:
        path = tmp_path / "s.yaml"
        path.write_text(f"{TEXT}{added}\n")
        with pytest.raises(FedsimError) as caught:
            load_scenario(path)
        (found,) = str(caught.value).splitlines()
        return found.replace(f"{tmp_path}/", "")

    return line


WRITTEN = [
    ("budget_mb", 6, Constant(6.0)),
    ("budget_mb", [1, 2.5], Uniform(1.0, 2.5)),
    ("speed", {"median": 1, "spread": 0.3}, LogNormal(1.0, 0.3)),
    ("link", {"mean": 2, "std": 0}, TruncatedNormal(2.0, 0.0)),
    ("battery", {"choices": [0.5, 1]}, Choices((0.5, 1.0), (1.0, 1.0))),
    ("memory_mb", {"choices": [2, 3], "weights": [0, 2.5]}, Choices((2.0, 3.0), (0.0, 2.5))),
    ("bit_depths", [8, 4], Constant((4, 8))),
    ("bit_depths", {"choices": [[8, 4], [2]]}, Choices(((4, 8), (2,)), (1.0, 1.0))),
    (
        "bit_depths",
        {"choices": [[8], [16]], "weights": [1, 3]},
        Choices(((8,), (16,)), (1.0, 3.0)),
    ),
]
"""A quantity, what a scenario writes, and what it is drawn from."""


def test_every_way_to_write_a_quantity():
    assert {name for name, _, _ in WRITTEN} == set(QUANTITIES)
    for name, written, meant in WRITTEN:
        (share,) = fleet(devices=one(**{name: written})).settings().shares
        assert share == Share("toy", 1.0, {name: meant}), written


def test_settings_of_a_fleet():
    correlation = {"link": {"speed": 0.5}, "speed": {"link": 0.5}}
    varying = one(speed=[1, 2], link=[1, 2])
    found = fleet(catalogue="mine.yaml", devices=varying, correlation=correlation).settings()
    drawn = {"speed": Uniform(1, 2), "link": Uniform(1, 2)}
    root = correlation_root({("speed", "link"): 0.5})
    assert found == FleetSettings("mine.yaml", (Share("toy", 1, drawn),), root)
    assert fleet(trace="t.csv", catalogue="c").settings() == FleetSettings("c", trace="t.csv")
    shares = fleet(devices={"a": 0.25, "b": {"share": 0.75}}).settings().shares
    assert shares == (Share("a", 0.25), Share("b", 0.75))
    assert fleet(devices=one(speed=None)).settings().shares == (Share("toy", 1),)  # null: its own


def test_devices_are_those_of_earlier_versions():
    written = {
        "glasses": {"share": 0.4, "budget_mb": [1.2, 2.0], "speed": {"median": 1, "spread": 0.3}},
        "car": {"share": 0.6, "link": {"mean": 1, "std": 1.5}, "bit_depths": {"choices": [[8]]}},
    }
    correlation = {"budget_mb": {"speed": 0.5, "link": 0.3}}
    drawn = open_fleet(
        fleet(devices=written, correlation=correlation).settings(),
        load_catalogue(),
        3,
        ["c0", "c1", "c2", "c3"],
    )
    found = [(p.device, p.budget_mb, p.macs_per_s[8], p.down_mbit) for p in drawn.values()]
    expected = [
        ("glasses", 1.8913677055251719, 33522725032.98798, 20.0),
        ("glasses", 1.927999465301233, 21543701662.752743, 20.0),
        ("glasses", 1.382322557790197, 26883434411.314342, 20.0),
        ("car", 128.0, 1350000000000.0, 8.032629607518281),
    ]
    for device, before in zip(found, expected, strict=True):
        assert device[0] == before[0]
        assert device[1:] == pytest.approx(before[1:], rel=1e-12)


SHARED = {"min_value": 1e-6, "max_value": 1e6}
NUMBERS = st.one_of(st.integers(1, 1000), st.floats(**SHARED))
WIDTHS = st.one_of(st.integers(0, 1000), st.floats(0, 1e6))
DEPTHS = st.lists(st.integers(2, 16), min_size=1, unique=True)


def choices_of(values):
    plain = st.lists(values, min_size=1, max_size=4)
    return plain.map(lambda found: {"choices": found}) | plain.map(
        lambda found: {"choices": found, "weights": [1, *[0.5] * (len(found) - 1)]}
    )


QUANTITY = st.one_of(
    NUMBERS,
    st.lists(NUMBERS, min_size=2, max_size=2).map(sorted),
    st.fixed_dictionaries({"median": NUMBERS, "spread": WIDTHS}),
    st.fixed_dictionaries({"mean": NUMBERS, "std": WIDTHS}),
    choices_of(NUMBERS),
)
ENTRY = st.fixed_dictionaries(
    {"share": st.sampled_from([1, 1.0])},
    optional={
        **dict.fromkeys(QUANTITIES[:-1], QUANTITY),
        "bit_depths": DEPTHS | choices_of(DEPTHS),
    },
)
TEXTS = st.text("abcdefgh _-.:1", min_size=1, max_size=8)


@cache
def schema_validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json_schema())


@settings(max_examples=examples(150), deadline=None, derandomize=True, database=None)
@given(device=TEXTS, entry=ENTRY | st.just(1), rest=st.dictionaries(TEXTS, st.just(0), max_size=2))
def test_a_fleet_is_written_as_it_was_given(tmp_path_factory, device, entry, rest):
    devices = {device: entry, **{name: share for name, share in rest.items() if name != device}}
    scenario = Scenario.model_validate({**BASE, "fleet": {"devices": devices}})
    dumped = scenario.model_dump(mode="json")["fleet"]
    # 6 does not become 6.0, and no key is added.
    assert json.dumps(dumped["devices"], sort_keys=True) == json.dumps(devices, sort_keys=True)
    assert (dumped["catalogue"], dumped["correlation"], dumped["trace"]) == (None, {}, None)
    path = tmp_path_factory.getbasetemp() / "fleet.yaml"
    path.write_text(scenario.to_yaml(), encoding="utf-8")
    again = load_scenario(path)
    assert again == scenario == scenario_from_json(scenario.model_dump_json())
    assert again.to_yaml() == scenario.to_yaml()
    schema_validator().validate(scenario.model_dump(mode="json"))


def test_keys_are_written_in_the_order_of_the_schema():
    entry = {"share": 1, **{name: written for name, written, _ in WRITTEN}}
    ordered = {key: entry[key] for key in ("share", *QUANTITIES)}
    for written in (ordered, dict(reversed(ordered.items()))):
        dumped = fleet(devices={"toy": written}).model_dump(mode="json")["devices"]["toy"]
        assert list(dumped.items()) == list(ordered.items())


def test_a_matrix_may_vary_a_fleet(tmp_path):
    from fedsim.scenario.matrix import expand

    path = tmp_path / "s.yaml"
    path.write_text(
        f"{TEXT}fleet: {{devices: {{watch: {{share: 1, speed: [1, 2]}}}}}}\n"
        "matrix: {fleet.devices.watch.speed: [3, [1, 2]], fleet.clip_s: [5]}\n"
    )
    cells = [cell.scenario.fleet for cell in expand(load_scenario(path))]
    drawn = [cell.settings().shares[0].distributions["speed"] for cell in cells if cell]
    assert drawn == [Constant(3.0), Uniform(1.0, 2.0)]


# What stands under `devices` (line 7 on), and the beginning and the remedy of the one line said.
MISTAKES = [
    ("{toy: 0.5}", "6: fleet.devices: shares add up to 0.5", "make them add up to 1"),
    ("{toy: 1, b: -0.5}", "7: fleet.devices.b is -0.5", "must be at least 0"),
    ("{toy: 1.5}", "7: fleet.devices.toy is 1.5", "must be at most 1"),
    ("{toy: x}", "7: fleet.devices.toy is 'x'", "{share: ..., budget_mb"),
    ("{toy: }", "7: fleet.devices.toy is empty (null)", "its share"),
    ("[toy]", "6: fleet.devices is a list of 1", "must be a mapping"),
    ("{toy: {budget_mb: 1}}", "7: the key 'share' in fleet.devices.toy is missing", "add it"),
    (
        "{toy: {share: 1, budget: 3}}",
        "7: unknown key 'budget' in fleet.devices.toy",
        "did you mean 'budget_mb'",
    ),
    ("budget_mb: [1, 2, 3]", "9: fleet.devices.toy.budget_mb is a list of 3", "2 items (largest"),
    ("budget_mb: [1]", "9: fleet.devices.toy.budget_mb is a list of 1", "must have 2 items"),
    ("budget_mb: []", "9: fleet.devices.toy.budget_mb is an empty list", "must have 2 items"),
    ("budget_mb: [2, 1]", "9: fleet.devices.toy.budget_mb: [2, 1] runs down", "lower number first"),
    ("budget_mb: [2, x]", "9: fleet.devices.toy.budget_mb.1 is 'x'", "must be a number"),
    ("budget_mb: 0", "9: fleet.devices.toy.budget_mb is 0", "must be at least 1e-06"),
    ("budget_mb: 1e9", "9: fleet.devices.toy.budget_mb is 1e9", "must be at most 1000000"),
    ("budget_mb: true", "9: fleet.devices.toy.budget_mb is true", "must be a number"),
    ("budget_mb: .nan", "9: fleet.devices.toy.budget_mb is .nan", "must be a finite number"),
    ("budget_mb: x", "9: fleet.devices.toy.budget_mb is 'x'", "{median, spread}"),
    (
        "speed: {median: 1}",
        "9: the key 'spread' in fleet.devices.toy.speed is missing",
        "standard deviation of the natural logarithm",
    ),
    (
        "speed: {median: 1, spread: 1, std: 1}",
        "9: unknown key 'std' in fleet.devices.toy.speed",
        "known: median, spread",
    ),
    ("speed: {spread: 1}", "9: the key 'median' in fleet.devices.toy.speed", "add it"),
    ("speed: {middle: 1}", "9: fleet.devices.toy.speed is a mapping", "{mean, std}"),
    ("speed: {}", "9: fleet.devices.toy.speed is an empty mapping", "[low, high]"),
    ("speed: {mean: -1, std: 1}", "9: fleet.devices.toy.speed.mean is -1", "at least 1e-06"),
    ("speed: {mean: 1, std: -1}", "9: fleet.devices.toy.speed.std is -1", "at least 0"),
    ("speed: {choices: []}", "9: fleet.devices.toy.speed.choices is an empty", "not be empty"),
    ("speed: {choices: 3}", "9: fleet.devices.toy.speed.choices is 3", "must be a list"),
    ("speed: {choices: [0]}", "9: fleet.devices.toy.speed.choices.0 is 0", "at least 1e-06"),
    ("speed: {weights: [1]}", "9: the key 'choices' in fleet.devices.toy.speed", "add it"),
    (
        "speed: {choices: [1], weights: [1, 2]}",
        "9: fleet.devices.toy.speed.weights: 2 weights, 1 choices",
        "one weight for each",
    ),
    (
        "speed: {choices: [1, 2], weights: [0, 0]}",
        "9: fleet.devices.toy.speed.weights: all are zero",
        "make one larger",
    ),
    (
        "speed: {choices: [1, 2], weights: [1, -1]}",
        "9: fleet.devices.toy.speed.weights.1 is -1",
        "at least 0",
    ),
    ("bit_depths: 8", "9: fleet.devices.toy.bit_depths is 8", "a list such as [4, 8]"),
    ("bit_depths: []", "9: fleet.devices.toy.bit_depths is an empty list", "must not be empty"),
    ("bit_depths: [1]", "9: fleet.devices.toy.bit_depths.0 is 1", "must be at least 2"),
    ("bit_depths: [17]", "9: fleet.devices.toy.bit_depths.0 is 17", "must be at most 16"),
    ("bit_depths: [8.0]", "9: fleet.devices.toy.bit_depths.0 is 8.0", "must be a whole number"),
    ("bit_depths: [4, 4]", "9: fleet.devices.toy.bit_depths.1: 4 is listed twice", "remove one"),
    (
        "bit_depths: {choices: [4]}",
        "9: fleet.devices.toy.bit_depths.choices.0 is 4",
        "such as [[8], [4, 8]]",
    ),
]


def test_what_is_wrong_with_a_device(refuse):
    for written, start, remedy in MISTAKES:
        below = f"toy:\n      share: 1\n      {written}" if start.startswith("9") else written
        said = refuse(f"fleet:\n  devices:\n    {below}")
        assert said.startswith(f"s.yaml:{start}"), said
        assert remedy in said


def test_a_device_class_may_be_called_like_a_quantity(refuse):
    said = refuse("fleet: {devices: {link: {share: 1, budget: 3}}}")
    assert said == "s.yaml:5: unknown key 'budget' in fleet.devices.link: did you mean 'budget_mb'?"


def test_all_mistakes_of_a_fleet_are_reported_at_once(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        TEXT + "fleet:\n  devices:\n    a: {share: 2}\n    b: {share: 0, speed: {std: 1, men: 2}}\n"
        "  sensing: streaming\n"
    )
    with pytest.raises(FedsimError) as caught:
        load_scenario(path)
    lines = str(caught.value).replace(str(path), "").splitlines()
    assert [line.split(" ")[0] for line in lines] == [":7:", ":8:", ":8:", ":9:"]
    assert "fleet.sensing is 'streaming': must be streamed or proxy; did you mean" in lines[3]


VARYING = "fleet: {devices: {watch: {share: 1, budget_mb: [1, 2], speed: [1, 2], link: [1, 2]}}"
OF_A_FLEET = [
    ("fleet: {}", "fleet: it has neither of devices and trace", "give one of them"),
    ("fleet: {devices: {}}", "fleet: it has neither of devices and trace", "give one of them"),
    ("fleet: {devices: {a: 1}, trace: x.csv}", "fleet: it has both of", "give one of them"),
    ("fleet: {trace: x, correlation: {speed: {link: 1}}}", "fleet.correlation: a trace", "leave"),
    ("fleet: {devics: {a: 1}}", "unknown key 'devics' in fleet", "did you mean 'devices'"),
    ("fleet: 3", "fleet is 3", "must be a mapping"),
    (f"{VARYING}, correlation: 3}}", "fleet.correlation is 3", "must be a mapping"),
    (f"{VARYING}, correlation: {{speed: 0.2}}}}", "fleet.correlation.speed is 0.2", "a mapping"),
    (
        f"{VARYING}, correlation: {{budget_mb: {{speed: 1.2}}}}}}",
        "fleet.correlation.budget_mb.speed is 1.2",
        "must be at most 1",
    ),
    (
        f"{VARYING}, correlation: {{budget_mb: {{spede: 0.2}}}}}}",
        "unknown key 'spede' in fleet.correlation.budget_mb",
        "did you mean 'speed'",
    ),
    (
        f"{VARYING}, correlation: {{budgt_mb: {{speed: 0.2}}}}}}",
        "unknown key 'budgt_mb' in fleet.correlation",
        "did you mean 'budget_mb'",
    ),
    (
        f"{VARYING}, correlation: {{speed: {{speed: 0.2}}}}}}",
        "fleet.correlation.speed.speed: a quantity has no correlation with itself",
        "leave it out",
    ),
    (
        f"{VARYING}, correlation: {{speed: {{battery: 0.2}}}}}}",
        "fleet.correlation.speed.battery: no class of fleet.devices has a battery of its own",
        "give one to a class",
    ),
    (
        f"{VARYING}, correlation: {{speed: {{link: 0.2}}, link: {{speed: 0.3}}}}}}",
        "fleet.correlation.speed.link: it is 0.2 here and 0.3 in link.speed",
        "give it once",
    ),
    (
        f"{VARYING}, correlation: {{speed: {{budget_mb: 0.9, link: -0.9}},"
        " budget_mb: {link: 0.9}}}",
        "fleet.correlation: these cannot all hold at once",
        "bring them nearer to 0",
    ),
]
OF_FAULTS = [
    ("kind: crsh, share: 1", "faults.0.kind is 'crsh'", "did you mean 'crash'"),
    ("kind: crash, share: 0", "faults.0.share is 0", "must be more than 0"),
    ("kind: crash", "the key 'share' in faults.0 is missing", "add it"),
    ("kind: delay, share: 1", "faults.0: delay needs seconds", "seconds: [5, 60]"),
    (
        "kind: crash, share: 1, seconds: [1, 2]",
        "faults.0.seconds: crash takes no",
        "leave them out",
    ),
    ("kind: delay, share: 1, seconds: [2, 1]", "faults.0.seconds: 2 to 1", "write [low, high]"),
    ("kind: delay, share: 1, seconds: [1]", "faults.0.seconds is a list of 1", "have 2 items"),
    ("kind: delay, share: 1, seconds: 5", "faults.0.seconds is 5", "must be a list"),
]
OF_A_CLOCK = [
    ("policy: drop", "clock.policy: 'drop' needs deadline_s", "add it"),
    ("policy: extend, goal: 0.5", "clock.policy: 'extend' needs deadline_s", "add it"),
    ("goal: 0.5", "clock.goal: the policy 'wait' does not read it", "use extend or over_select"),
    ("deadline_s: 5", "clock.deadline_s: the policy 'wait'", "use drop or extend or over_select"),
    ("policy: dorp, deadline_s: 5", "clock.policy is 'dorp'", "did you mean 'drop'"),
    ("begin_hour: 24", "clock.begin_hour is 24", "must be less than 24"),
]


def test_what_is_wrong_with_fleets_faults_and_clocks(refuse):
    faults = [(f"clients: {{budget_mb: 3}}\nfaults:\n  - {{{w}}}", *rest) for w, *rest in OF_FAULTS]
    clocks = [(f"fleet: {{devices: {{a: 1}}}}\nclock: {{{w}}}", *rest) for w, *rest in OF_A_CLOCK]
    for line, cases in ((5, OF_A_FLEET), (7, faults), (6, clocks)):
        for written, start, remedy in cases:
            said = refuse(written)
            assert said.startswith(f"s.yaml:{line}: {start}"), said
            assert remedy in said


def test_a_policy_takes_the_same_settings_on_the_clock_and_in_a_scenario():
    values = {"deadline_s": 5.0, "goal": 0.5}
    for name, policy in POLICIES.items():
        for keys in ((), ("deadline_s",), ("goal",), ("deadline_s", "goal")):
            taken = {key: values[key] for key in keys}
            fits = set(policy.needs) <= set(keys) <= {*policy.needs, *policy.takes}
            for make in (
                lambda **settings: ServerClock(**settings),
                lambda **settings: ClockSettings.model_validate(settings).server(RetrySettings()),
            ):
                if fits:
                    assert make(policy=name, **taken).policy == name
                else:
                    with pytest.raises((FedsimError, ValueError)):
                        make(policy=name, **taken)


def test_names_in_the_schema_are_those_of_the_tables():
    def words(model, key):
        return get_args(model.model_fields[key].annotation)

    assert words(FaultSettings, "kind") == tuple(FAULTS)
    assert words(ClockSettings, "policy") == tuple(POLICIES)
    assert get_args(QuantityName) == QUANTITIES
    assert tuple(DeviceSettings.model_fields) == ("share", *QUANTITIES)
    assert all(entry.summary for entry in (*FAULTS.values(), *POLICIES.values()))


def test_the_documentation_names_every_fault_and_policy():
    text = (Path(__file__).parents[2] / "docs" / "fleets.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", text))
    assert {*FAULTS, *POLICIES, *QUANTITIES} <= words


def test_every_kind_of_fault_can_be_declared():
    for name, kind in FAULTS.items():
        seconds = {"seconds": [1, 2]} if kind.takes_seconds else {}
        assert FaultSettings.model_validate({"kind": name, "share": 1, **seconds}).kind == name
        assert kind.work_done or kind.no_answer  # who does nothing cannot answer


def is_valid(fleet_):
    return schema_validator().is_valid({**BASE, "fleet": fleet_})


def test_the_json_schema_knows_every_way_to_write_a_fleet():
    for name, written, _ in WRITTEN:
        assert is_valid({"devices": one(**{name: written})}), written
    assert is_valid({"devices": {"watch": 1}, "correlation": {"speed": {"link": 0.5}}})
    for wrong in (
        *(one(**entry) for entry in ({"budget": 3}, {"budget_mb": "x"}, {"budget_mb": [1]})),
        *(one(**entry) for entry in ({"budget_mb": 0}, {"speed": {"median": 1}}, {"link": {}})),
        *(one(**entry) for entry in ({"speed": {"choices": []}}, {"bit_depths": [1]})),
        *({"toy": entry} for entry in ({"speed": 1}, 2, "1", None)),
    ):
        assert not is_valid({"devices": wrong}), wrong
    for wrong in ({"sped": {"link": 0.5}}, {"speed": {"lnk": 0.5}}, {"speed": {"link": 2}}):
        assert not is_valid({"devices": {"watch": 1}, "correlation": wrong}), wrong


def open_places(schema, path=()):
    """Yield the paths of a JSON Schema at which it takes anything."""
    kinds = ("$ref", "anyOf", "oneOf", "enum", "const", "type")
    if not any(kind in schema for kind in kinds):
        yield path
    if schema.get("type") == "object" and schema.get("additionalProperties", True) is True:
        yield path
    for name, part in schema.get("properties", {}).items():
        yield from open_places(part, (*path, name))
    for key in ("additionalProperties", "items"):
        if isinstance(schema.get(key), dict):
            yield from open_places(schema[key], (*path, key))
    for key in ("anyOf", "oneOf", "prefixItems"):
        for part in schema.get(key, ()):
            yield from open_places(part, (*path, key))


def test_only_the_values_of_a_matrix_are_open_in_the_json_schema():
    schema = json_schema()
    parts = {"": schema, **schema["$defs"]}
    found = {(name, *path) for name, part in parts.items() for path in open_places(part)}
    assert found == {("", "matrix", "additionalProperties", "items")}


def test_every_key_of_the_json_schema_has_a_description():
    schema = json_schema()
    for part in (schema, *schema["$defs"].values()):
        assert part["description"]
        for name, field in part["properties"].items():
            assert field.get("description"), (part["title"], name)
