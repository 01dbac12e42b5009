"""Scenario files: what loads, what comes out, and the sentence for every mistake."""

import string
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import FedsimError
from fedsim.scenario import Scenario, load_scenario, scenario_from_json
from fedsim.scenario.load import _KNOWN, _named

FULL = """\
# fedsim run prompts
name: prompts
description: |
  Five languages.
  More of it.
seed: 7
model:
  id: some/whisper
  window_s: 10
corpus:
  path: some/prompts
  group_by: language
clients:
  select: [en, es, no]
  budget_mb: [30, 40.5, 1e2]
methods:
  - fp32
  - uniform
  - allocation: myqasr
    calibration: [minmax, cosine]
    tuned_on: [own, other]
  - {allocation: shuffled, draws: 3}
engine:
  kind: ray
"""
SMALL = """\
name: a
model: {id: m}
corpus: {path: p, group_by: speaker}
clients: {budget_mb: 40}
methods: [fp32]
"""


@pytest.fixture
def load(tmp_path):
    """Return a function that writes a text (or bytes) to s.yaml and loads it with overrides."""

    def write_and_load(text, *overrides):
        path = tmp_path / "s.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_scenario(path, overrides)

    return write_and_load


@pytest.fixture
def refuse(load, tmp_path):
    """Return a function that gives the lines of the error, without the file's folder."""

    def lines(text, *overrides):
        with pytest.raises(FedsimError) as caught:
            load(text, *overrides)
        return str(caught.value).replace(str(tmp_path) + "/", "").splitlines()

    return lines


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
    assert (uniform.allocation, uniform.calibration) == ("uniform", ("cosine",))
    assert (myqasr.calibration, myqasr.tuned_on) == (("minmax", "cosine"), ("own", "other"))
    assert shuffled.draws == 3


def test_defaults(load):
    s = load(SMALL)
    assert (s.description, s.seed, s.save_models) == ("", 0, False)
    assert (s.model.window_s, s.model.keep, s.model.batch_size) == (None, (), 8)
    corpus = s.corpus
    assert (corpus.kind, corpus.config, corpus.split, corpus.columns) == (
        "folder",
        None,
        "test",
        {},
    )
    assert (corpus.tuning_clips, corpus.test_clips, corpus.convert) == (16, 40, False)
    assert (s.clients.select, s.clients.limit, s.clients.budget_mb) == (None, None, 40.0)
    assert s.clients.bit_depths == tuple(range(2, 17))
    q = s.quantization
    assert (q.weights, q.activation_bits, q.sensitivity) == ("per_channel", 8, "median")
    e = s.engine
    assert (e.kind, e.workers, e.threads, e.address) == ("ray", None, 1, None)


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


# What is replaced in FULL, by what, and the exact beginning and some words of the one line said.
MISTAKES = [
    ("seed: 7", "seed: true", "s.yaml:6: seed is true: must be a whole number", ""),
    ("seed: 7", "seed: 7.0", "s.yaml:6: seed is 7.0: must be a whole number", ""),
    ("seed: 7", "seed: -1", "s.yaml:6: seed is -1: must be at least 0", ""),
    ("seed: 7", "sed: 7", "s.yaml:6: unknown key 'sed': did you mean 'seed'?", ""),
    ("seed: 7", "seed: 7\nseed: 8", "s.yaml:7: the key 'seed' is written twice", "line 6"),
    ("seed: 7", "save_models: yes", "s.yaml:6: save_models is 'yes': must be true or false", ""),
    ("seed: 7", "seed:", "s.yaml:6: seed is empty (null): must be a whole number", ""),
    ("name: prompts", "name: a/b", "s.yaml:2: name is 'a/b'", "run folder"),
    ("name: prompts", "name: 12", "s.yaml:2: name is 12: must be text, so put it in quotes", ""),
    ("window_s: 10", "window_s: 31", "s.yaml:9: model.window_s is 31: must be at most 30", ""),
    ("window_s: 10", "window_s: 0.5", "s.yaml:9: model.window_s is 0.5: must be at least 1", ""),
    ("window_s: 10", "window_s: .nan", "s.yaml:9: model.window_s is .nan", "finite"),
    ("window_s: 10", "widow_s: 10", "s.yaml:9: unknown key 'widow_s' in model", "'window_s'?"),
    (
        "group_by: language",
        "group_by: langage",
        "s.yaml:12: corpus.group_by is 'langage'",
        "'language'?",
    ),
    ("  group_by: language\n", "", "s.yaml:10: the key 'group_by' in corpus is missing", ""),
    ("path: some", "columns: {txt: a}\n  path: some", "s.yaml:11: corpus.columns.txt", "'text'?"),
    ("path: some", "kind: foldr\n  path: some", "s.yaml:11: corpus.kind", "'folder'?"),
    ("path: some", "tuning_clips: 0\n  path: some", "s.yaml:11: corpus.tuning_clips is 0", ""),
    ("path: some", "test_clips: 0\n  path: some", "s.yaml:11: corpus.test_clips is 0", ""),
    ("[en, es, no]", "[en, 12]", "s.yaml:14: clients.select.1 is 12", "quotes"),
    ("[en, es, no]", "[en, es, en]", "s.yaml:14: clients.select.2: 'en' is listed twice", ""),
    ("[en, es, no]", "[]", "s.yaml:14: clients.select is an empty list: must not be empty", ""),
    ("[en, es, no]", "[en]", "s.yaml:21: methods.2.tuned_on.1: 'other' needs two clients", ""),
    ("[30, 40.5, 1e2]", "0", "s.yaml:15: clients.budget_mb is 0: must be more than 0", ""),
    ("[30, 40.5, 1e2]", "true", "s.yaml:15: clients.budget_mb is true: must be a number", ""),
    ("[30, 40.5, 1e2]", "[3, .inf]", "s.yaml:15: clients.budget_mb.1 is .inf", "finite"),
    ("[30, 40.5, 1e2]", "[]", "s.yaml:15: clients.budget_mb is an empty list", ""),
    ("[30, 40.5, 1e2]", "{en: 3, es: -4}", "s.yaml:15: clients.budget_mb.es is -4", ""),
    ("[30, 40.5, 1e2]", "{en: 3, es: 4}", "s.yaml:15: clients.budget_mb: client 'no' has no", ""),
    ("select:", "limit: 0\n  select:", "s.yaml:14: clients.limit is 0: must be at least 1", ""),
    ("select:", "bit_depths: [8, 1]\n  select:", "s.yaml:14: clients.bit_depths.1 is 1", "2"),
    ("select:", "bit_depths: [17]\n  select:", "s.yaml:14: clients.bit_depths.0 is 17", "16"),
    ("select:", "bit_depths: [8, 8]\n  select:", "s.yaml:14: clients.bit_depths.1: 8 is", "twice"),
    ("  - uniform", "  - unifrm", "s.yaml:18: methods.1: there is no", "'uniform'?"),
    ("  - uniform", "  - fp32", "s.yaml:18: methods.1: repeats methods.0 (fp32)", ""),
    ("  - uniform", "  - 3", "s.yaml:18: methods.1 is 3: must be a mapping", ""),
    (
        "  - uniform",
        "  - {allocation: uniform, order: ascending}",
        "s.yaml:18: methods.1.order",
        "",
    ),
    (
        "  - uniform",
        "  - {allocation: uniform, order: up}",
        "s.yaml:18: methods.1.order is 'up'",
        "",
    ),
    (
        "  - uniform",
        "  - {calibration: cosine}",
        "s.yaml:18: the key 'allocation' in methods.1",
        "",
    ),
    ("  - fp32", "  - {allocation: fp32, calibration: minmax}", "s.yaml:17: methods.0.calib", ""),
    ("  - fp32", "  - {allocation: fp32, tuned_on: own}", "s.yaml:17: methods.0.tuned_on", ""),
    ("shuffled, draws: 3", "shuffled, draws: 0", "s.yaml:22: methods.3.draws is 0", ""),
    ("shuffled, draws: 3", "linear, draws: 3", "s.yaml:22: methods.3.draws: only shuffled", ""),
    ("shuffled, draws: 3", "shuffled, calibration: cosin", "s.yaml:22: methods.3", "'cosine'?"),
    ("shuffled, draws: 3", "shuffled, calibration: []", "s.yaml:22: methods.3.calibration", ""),
    ("[minmax, cosine]", "[minmax, minmx]", "s.yaml:20: methods.2.calibration", "'minmax'?"),
    ("[minmax, cosine]", "[cosine, cosine]", "s.yaml:20: methods.2.calibration.1", "twice"),
    ("[own, other]", "[own, ru]", "s.yaml:21: methods.2.tuned_on.1: 'ru' is no client", "es, no"),
    ("kind: ray", "kind: rya", "s.yaml:24: engine.kind: there is no engine 'rya'", "'ray'?"),
    ("kind: ray", "threads: two", "s.yaml:24: engine.threads is 'two'", "whole number"),
    (
        "engine:\n",
        "quantization: {sensitivity: medain}\nengine:\n",
        "s.yaml:23: quant",
        "'median'?",
    ),
    ("engine:\n", "quantization: {weights: row}\nengine:\n", "s.yaml:23: quant", "per_tensor"),
    ("engine:\n", "quantization: {activation_bits: 3}\nengine:\n", "s.yaml:23: quant", "4"),
    ("id: some/whisper", "id: $FEDSIM_UNSET/x", "s.yaml:8: model.id", "$FEDSIM_UNSET"),
    ("id: some/whisper", "id: cache:../x", "s.yaml:8: model.id", "cache:NAME"),
    ("id: some/whisper", "id: ''", "s.yaml:8: model.id is ''", "must not be empty"),
]


@pytest.mark.parametrize(("old", "new", "start", "words"), MISTAKES)
def test_a_mistake_is_one_line_with_its_place(refuse, old, new, start, words):
    assert FULL.count(old) == 1
    said = refuse(FULL.replace(old, new))
    assert len(said) == 1, said
    assert said[0].startswith(start)
    assert words in said[0]


def test_all_mistakes_are_told_at_once_in_the_order_of_the_lines(refuse):
    text = FULL.replace("seed: 7", "seed: x").replace("- uniform", "- unifrm")
    text = text.replace("kind: ray", "kid: ray").replace("window_s: 10", "window_s: 99")
    places = [line.split(" ")[0] for line in refuse(text)]
    assert places == ["s.yaml:6:", "s.yaml:9:", "s.yaml:18:", "s.yaml:24:"]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", "s.yaml: the file is empty"),
        ("# only a comment\n", "s.yaml: the file is empty"),
        ("- a\n- b\n", "s.yaml:1: a scenario must be a mapping"),
        ("just words\n", "s.yaml:1: a scenario must be a mapping"),
        ("name: a\n\tseed: 1\n", "s.yaml:2: the line is indented with a tab: use spaces"),
        ("model:\n\tid: 1\n", "s.yaml:2: the line is indented with a tab: use spaces"),
        ("name: a: b\n", "s.yaml:1: a second ':' on one line"),
        ("name: [1\nseed: 3\n", "s.yaml:2: not YAML"),
        ("name: a\n---\nname: b\n", "s.yaml:2: not YAML: expected a single document"),
        ("name: a\nx: *b\n", "s.yaml:2: not YAML: found undefined alias"),
        ("name: a\nx: &b [*b]\n", "s.yaml:2: an alias (*) may not stand inside"),
        ("name: a\n? [b]\n: c\n", "s.yaml:2: a key must be one word"),
        ("name: !!python/name:os.system x\n", "s.yaml:1: the tag"),
        ("name: a\nx: \x01\n", "s.yaml:2: the character U+0001"),
        (b"name: a\nx: \xff\n", "s.yaml:2: the file is not UTF-8"),
        ("[" * 5000, "s.yaml:1: lists or mappings are nested too deep"),
    ],
)
def test_what_is_no_yaml_mapping_is_refused(refuse, text, start):
    (line,) = refuse(text)
    assert line.startswith(start)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FedsimError, match=r"nope\.yaml: there is no such file"):
        load_scenario(tmp_path / "nope.yaml")
    with pytest.raises(FedsimError, match="this is a folder"):
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


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", "an override is written key=value"),
        ("=3", "an override is written key=value"),
        ("a..b=3", "an override is written key=value"),
        ("quantization.wieghts=per_tensor", "unknown key 'wieghts' in quantization: did you mean"),
        ("quantisation.weights=per_tensor", "unknown key 'quantisation': did you mean 'quantiz"),
        ("methods.9.draws=2", "methods has no item '9': it has items 0 to 3"),
        ("methods.1.calibratin=cosine", "unknown key 'calibratin' in methods.1: did you mean"),
        ("methods.0=unifrm", "methods.0: there is no allocation 'unifrm': did you mean"),
        ("seed.x=3", "seed is '7' and has no part 'x'"),
        ("seed=[1", "not YAML"),
        ("seed=true", "seed is true: must be a whole number"),
    ],
)
def test_a_wrong_override_names_itself(refuse, override, words):
    (line,) = refuse(FULL, override)
    assert line.startswith(f"--set {override}: ")
    assert words in line


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


TEXT = st.text(min_size=1).filter(lambda t: t.encode("utf-8", "ignore").decode() == t)
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


@settings(max_examples=150, deadline=None)
@given(
    description=TEXT | st.text(alphabet=string.ascii_letters + "\n :-#\t'\"|>"),
    keys=KEYS,
    budget=st.floats(min_value=1e-300, max_value=1e6),
    seed=st.integers(min_value=0),
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


def test_names_known_without_torch_are_those_of_the_registries():
    for registry, known in _KNOWN.items():
        assert known == set(_named(registry)._entries)


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
