"""Scenario files: what loads, and what comes out."""

import string
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples
from scenario_toys import FULL, SMALL

from fedsim.errors import FedsimError
from fedsim.scenario import Scenario, load_scenario, scenario_from_json


def test_every_field_arrives(load):
    scenario = load(FULL)
    assert scenario.name == "prompts"
    assert scenario.description == "Five languages.\nMore of it.\n"
    assert scenario.seed == 7
    assert (scenario.model.id, scenario.model.window_s) == ("some/whisper", 10.0)
    assert scenario.clients.select == ("en", "es", "no")  # "no" is Norwegian, not false
    assert scenario.clients.budget_mb == (30.0, 40.5, 100.0)
    fp32, uniform, myqasr, shuffled = scenario.methods
    assert (fp32.allocation, fp32.calibration, fp32.tuned_on) == ("fp32", (), ())
    assert (uniform.allocation, uniform.calibration) == ("uniform", ("dynamic",))
    assert (myqasr.calibration, myqasr.tuned_on) == (("minmax", "cosine"), ("own", "other"))
    assert shuffled.draws == 3
    assert (fp32.rounding, fp32.moments) == ((), ())
    for method in (uniform, myqasr, shuffled):  # those of the section `quantization`
        assert (method.rounding, method.moments) == (("compensated",), ("blend",))


def test_a_method_takes_what_it_does_not_give_from_the_section_quantization(load):
    text = SMALL.replace("[fp32]", "[uniform, {allocation: myqasr, rounding: scaled}]")
    scenario = load(
        f"{text}quantization: {{activations: float, moments: own, weights: {{group: 64}}}}"
    )
    uniform, myqasr = scenario.methods
    assert (uniform.calibration, myqasr.calibration) == (("float",), ("float",))
    assert (uniform.rounding, uniform.moments) == (("compensated",), ("own",))
    assert (myqasr.rounding, myqasr.moments) == (("scaled",), ())  # which reads none
    assert scenario.quantization.weights == "group_64"
    assert load(scenario.to_yaml()) == scenario


def test_defaults(load):
    s = load(SMALL)
    assert (s.description, s.seed, s.save_models) == ("", 0, False)
    assert (s.model.window_s, s.model.keep, s.model.batch_size) == (None, (), 8)
    corpus = s.corpus
    assert (corpus.kind, corpus.config, corpus.split, corpus.columns) == (
        "auto",
        None,
        "test",
        {},
    )
    assert (corpus.tuning_clips, corpus.test_clips, corpus.convert) == (16, 40, False)
    assert (s.clients.select, s.clients.limit, s.clients.budget_mb) == (None, None, 40.0)
    assert s.clients.bit_depths == tuple(range(2, 17))
    q = s.quantization
    assert (q.weights, q.zero_points, q.sensitivity) == ("group_128", True, "median")
    assert (q.rounding, q.moments, q.own_weight, q.losses) == (
        "compensated",
        "blend",
        0.5,
        "public",
    )
    assert (q.activations, q.activation_bits) == ("dynamic", 8)
    assert (q.public_clips, q.public_count) == (None, 128)
    e = s.engine
    assert (e.kind, e.workers, e.threads, e.address) == ("auto", None, 1, None)


def test_bit_depths_come_sorted_and_one_word_is_a_list_of_one(load):
    text = SMALL.replace("{budget_mb: 40}", "{budget_mb: 75, bit_depths: [8, 2, 4]}")
    scenario = load(text.replace("[fp32]", "[{allocation: linear, calibration: none}]"))
    assert scenario.clients.bit_depths == (2, 4, 8)
    assert scenario.methods[0].calibration == ("none",)
    assert type(scenario.clients.budget_mb) is float


def test_a_scenario_is_frozen(load):
    with pytest.raises(ValueError, match="frozen"):
        load(SMALL).seed = 3


def test_budgets_by_client_take_bare_numbers_as_keys(load):
    scenario = load(SMALL.replace("40", "{1089: 30, '61': 40.5}"))
    assert scenario.clients.budget_mb == {"1089": 30.0, "61": 40.5}


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FedsimError, match=r"nope\.yaml: .*check the path"):
        load_scenario(tmp_path / "nope.yaml")
    with pytest.raises(FedsimError, match="name the YAML file in it"):
        load_scenario(tmp_path)


def test_overrides(load):
    scenario = load(
        FULL,
        "quantization.weights=per_tensor",  # a mapping that the file has not
        "methods.1.calibration=[minmax]",  # the bare word `uniform`
        "methods.2.tuned_on=own",
        "model.window_s=",  # empty is null
        "clients.select=[en, es]",
        "clients.budget_mb={en: 30, es: 40}",
        "name=two=equals".replace("two=", "two-"),
    )
    assert scenario.quantization.weights == "per_tensor"
    assert scenario.methods[1].allocation == "uniform"
    assert scenario.methods[1].calibration == ("minmax",)
    assert scenario.methods[2].tuned_on == ("own",)
    assert scenario.methods[2].calibration == ("minmax", "cosine")
    assert scenario.model.window_s is None
    assert scenario.clients.budget_mb == {"en": 30.0, "es": 40.0}
    assert scenario.name == "two-equals"


def test_a_later_override_wins_and_value_may_hold_an_equals_sign(load):
    scenario = load(SMALL, "seed=1", "seed=2", "description=a=b")
    assert (scenario.seed, scenario.description) == (2, "a=b")


def test_paths_start_at_the_yaml_file(load, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "clips").mkdir()
    text = SMALL.replace("{id: m}", "{id: cache:whisper}").replace("path: p", "path: clips")
    scenario = load(text)
    assert scenario.model.id == str(tmp_path / "cache/whisper")
    assert scenario.corpus.path == str(tmp_path / "clips")


def test_a_path_in_an_override_starts_at_the_working_folder(load, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert load(SMALL, "corpus.path=./clips").corpus.path == str(here / "clips")


def test_the_resolved_scenario_round_trips(load):
    scenario = load(FULL, "clients.bit_depths=[8, 4]")
    again = load(scenario.to_yaml())
    assert again == scenario
    assert again.to_yaml() == scenario.to_yaml()
    assert scenario_from_json(scenario.model_dump_json()) == scenario


# Neither surrogates nor control characters, which no scenario needs.
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1)
TRICKY = st.sampled_from(
    [
        "no",
        "null",
        "~",
        "1e3",
        "0x1F",
        "1:30",
        "2024-01-01",
        "true",
        " a",
        "'",
        "#",
        "\x85",
        "a\u2028b",
        "\r",
    ]
)
KEYS = st.lists(TEXT | TRICKY, min_size=2, max_size=4, unique=True)


@settings(max_examples=examples(150), deadline=None)
@given(
    description=TEXT | st.text(alphabet=string.ascii_letters + "\n :-#\t'\"|>"),
    keys=KEYS,
    budget=st.floats(min_value=1e-300, max_value=1e6),
    seed=st.integers(min_value=0, max_value=2**63 - 1),
)
def test_any_text_and_number_round_trips(tmp_path_factory, description, keys, budget, seed):
    scenario = Scenario.model_validate(
        {
            "name": "a",
            "description": description,
            "seed": seed,
            "model": {"id": "org/model"},
            "corpus": {"path": "org/data", "group_by": "speaker"},
            "clients": {"select": keys, "budget_mb": dict.fromkeys(keys, budget)},
            "methods": ["fp32", {"allocation": "uniform", "tuned_on": list(keys)}],
        }
    )
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_bytes(scenario.to_yaml().encode())
    assert load_scenario(path) == scenario


def test_a_right_scenario_is_read_without_torch(tmp_path):
    (tmp_path / "s.yaml").write_text(FULL)
    program = """
import sys
from fedsim.scenario import load_scenario
load_scenario(sys.argv[1], ["quantization.sensitivity=kl", "methods.1.calibration=hessian"])
sys.exit("torch" in sys.modules)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "s.yaml")]
    assert subprocess.run(command).returncode == 0


def test_public_clips_are_found_beside_the_file(load, tmp_path):
    (tmp_path / "public").mkdir()
    public = "quantization: {public_clips: {path: public, group_by: speaker}}"
    found = load(f"{SMALL}{public}").quantization.public_clips
    assert found.path == str(tmp_path / "public")
