"""The line that a mistake in a scenario file gets: its place, the key, the value, the remedy."""

from __future__ import annotations

import string
from typing import get_origin

import annotated_types as bounds
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples
from scenario_toys import FULL
from schema_fields import all_fields, all_sections, changed, inside

from fedsim.errors import FedsimError
from fedsim.scenario import load_scenario
from fedsim.scenario.settings import OneOf

DOCUMENT = {
    "name": "toy",
    "model": {"id": "org/model"},
    "corpus": {"path": "org/clips", "group_by": "speaker"},
    "clients": {"budget_mb": 30},
    "methods": [{"allocation": "myqasr"}],
    "faults": [{"kind": "crash", "share": 0.5}],
    "privacy": {"budget": {"epsilon": 3}},
}
VOICES = {"kind": "voices", "group_by": "speaker", "population": {"speakers": 4}}
FIELDS = [field for field in all_fields() if field.path[0] != "fleet"]
"""Every setting, but for the distributions of a fleet, whose keys are those of device classes."""
SECTIONS = [(path, section) for path, section in all_sections() if path[:1] != ("fleet",)]
properties = settings(max_examples=examples(60), deadline=None, derandomize=True, database=None)


def errors_of(folder, path, value) -> tuple[list[str], int]:
    """The lines about a document with this value at a path, and the line that holds the key."""
    document = DOCUMENT if path[:2] != ("corpus", "population") else {**DOCUMENT, "corpus": VOICES}
    if path[:2] == ("quantization", "public_clips") and len(path) > 2:
        public = (
            VOICES if path[2] == "population" else {"path": "org/public", "group_by": "speaker"}
        )
        document = {**DOCUMENT, "quantization": {"public_clips": public}}
    if path[:2] == ("model", "vocabulary"):
        document = {**DOCUMENT, "model": {"id": "org/model", "vocabulary": {"words": 3000}}}
    text = yaml.safe_dump(changed(document, path, value), sort_keys=False)
    file = folder / "s.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(FedsimError) as caught:
        load_scenario(file)
    # A key stands below those of its sections, two columns to the right of them.
    line, lines = -1, text.splitlines()
    for depth, key in enumerate(path):
        line = next(
            number
            for number in range(line + 1, len(lines))
            if lines[number][2 * depth :].startswith(f"{key}:")
            and not lines[number][: 2 * depth].strip(" -")
        )
    return str(caught.value).replace(f"{folder}/", "").splitlines(), line + 1


def dotted(path) -> str:
    """The key of a setting as errors name it: with the place of an item in a list."""
    parts = [f"{key}.0" if key in ("methods", "faults") else key for key in path]
    return ".".join(parts)


def number(limit):
    return limit if isinstance(limit, int) else f"{limit:.15g}"


def outside(field) -> list[tuple[float, str]]:
    """Numbers that a setting cannot be, with the words that the error has for each."""
    found: list[tuple[float, str]] = []
    for limit in field.metadata(bounds.BaseMetadata):
        match limit:
            case bounds.Ge(ge=low):
                found.append((low - 1, f"must be at least {number(low)}"))
            case bounds.Gt(gt=low):
                found += [(value, f"must be more than {number(low)}") for value in (low, low - 1)]
            case bounds.Le(le=high):
                found.append((high + 1, f"must be at most {number(high)}"))
            case bounds.Lt(lt=high):
                found += [
                    (value, f"must be less than {number(high)}") for value in (high, high + 1)
                ]
    return found


def test_a_number_out_of_range(tmp_path):
    """For every setting with limits: place, key, value and limit, on one line."""
    checked = 0
    for field in FIELDS:
        if field.key == "clients.bit_depths":  # a list of numbers
            continue
        for value, words in outside(field):
            lines, line = errors_of(tmp_path, field.path, value)
            assert len(lines) == 1, (field.key, lines)
            assert lines[0].startswith(f"s.yaml:{line}: {dotted(field.path)} is {value}: {words}")
            checked += 1
    assert checked > 40


def test_a_value_of_another_type(tmp_path):
    """A mapping where a value is meant: for every setting one line that names place and key."""
    for field in FIELDS:
        if any(get_origin(kind) is dict for kind in inside(field.info.annotation)):
            continue
        lines, line = errors_of(tmp_path, field.path, {"a": 1})
        assert lines[0].startswith(f"s.yaml:{line}: {dotted(field.path)}"), (field.key, lines)
        grouped = field.key == "quantization.weights"  # the one value that may be a mapping
        words = "{'a': 1} is not a group size: write group: and" if grouped else "must be"
        assert words in lines[0], (field.key, lines)


def test_a_name_that_is_misspelled(tmp_path):
    """For every setting that names an entry of a registry, and every entry."""
    for field in FIELDS:
        for choices in field.metadata(OneOf):
            for name in choices.names():
                if len(name) < 4:
                    continue
                wrong = name[:1] + name[2:]
                lines, line = errors_of(tmp_path, field.path, wrong)
                assert lines[0].startswith(f"s.yaml:{line}: {dotted(field.path)}: there is no ")
                assert lines[0].endswith("?"), lines
                assert f"{wrong!r}: did you mean '" in lines[0]


@properties
@given(st.data())
def test_a_key_that_is_misspelled(tmp_path_factory, data):
    """In any section: the place of the key, and the nearest that the section has."""
    path, section = data.draw(st.sampled_from(SECTIONS))
    key = data.draw(st.sampled_from(sorted(section.model_fields)).filter(lambda key: len(key) > 3))
    at = data.draw(st.integers(1, len(key) - 1))
    wrong = key[:at] + data.draw(st.sampled_from(string.ascii_lowercase)) + key[at:]
    folder = tmp_path_factory.getbasetemp()
    lines, line = errors_of(folder, (*path, wrong), 1)
    where = f" in {dotted(path)}" if path else ""
    assert lines[-1].startswith(f"s.yaml:{line}: unknown key {wrong!r}{where}: did you mean '")


def test_a_key_that_is_missing(refuse):
    (line,) = refuse(FULL.replace("  group_by: language\n", ""))
    assert line.startswith("s.yaml:10: the key 'group_by' in corpus is missing")
    (line,) = refuse(FULL.replace("  - uniform", "  - {calibration: cosine}"))
    assert line.startswith("s.yaml:18: the key 'allocation' in methods.1")


# What is replaced in FULL, by what, and the beginning and some words of the line about it.
MISTAKES = [
    ("seed: 7", "seed: true", "s.yaml:6: seed is true: must be a whole number", ""),
    ("seed: 7", "seed: 7.0", "s.yaml:6: seed is 7.0: must be a whole number", ""),
    ("seed: 7", "seed: 7\nseed: 8", "s.yaml:7: the key 'seed' is written twice", "line 6"),
    ("seed: 7", "save_models: yes", "s.yaml:6: save_models is 'yes': must be true or false", ""),
    ("seed: 7", "seed:", "s.yaml:6: seed is empty (null): must be a whole number", ""),
    ("name: prompts", "name: a/b", "s.yaml:2: name is 'a/b'", "run folder"),
    ("name: prompts", "name: 12", "s.yaml:2: name is 12: must be text, so put it in quotes", ""),
    ("window_s: 10", "window_s: .nan", "s.yaml:9: model.window_s is .nan", "finite"),
    ("group_by: language", "group_by: langage", "s.yaml:12: corpus.group_by is", "'language'?"),
    ("path: some", "columns: {txt: a}\n  path: some", "s.yaml:11: corpus.columns.txt", "'text'?"),
    ("[en, es, no]", "[en, 12]", "s.yaml:14: clients.select.1 is 12", "quotes"),
    ("[en, es, no]", "[en, es, en]", "s.yaml:14: clients.select.2: 'en' is listed twice", "remove"),
    ("[en, es, no]", "[]", "s.yaml:14: clients.select is an empty list: must not be empty", ""),
    ("[en, es, no]", "[en]", "s.yaml:21: methods.2.tuned_on.1: 'other' needs at least two", "own"),
    ("[30, 40.5, 1e2]", "0", "s.yaml:15: clients.budget_mb is 0: must be more than 0", ""),
    ("[30, 40.5, 1e2]", "true", "s.yaml:15: clients.budget_mb is true: must be a number", ""),
    ("[30, 40.5, 1e2]", "[3, .inf]", "s.yaml:15: clients.budget_mb.1 is .inf", "finite"),
    ("[30, 40.5, 1e2]", "[]", "s.yaml:15: clients.budget_mb is an empty list", ""),
    ("[30, 40.5, 1e2]", "{en: 3, es: -4}", "s.yaml:15: clients.budget_mb.es is -4", ""),
    ("[30, 40.5, 1e2]", "{en: 3, es: 4}", "s.yaml:15: clients.budget_mb: client 'no'", "add one"),
    ("select:", "bit_depths: [8, 1]\n  select:", "s.yaml:14: clients.bit_depths.1 is 1", "2"),
    ("select:", "bit_depths: [17]\n  select:", "s.yaml:14: clients.bit_depths.0 is 17", "16"),
    ("select:", "bit_depths: [8, 8]\n  select:", "s.yaml:14: clients.bit_depths.1: 8", "twice"),
    ("  - uniform", "  - unifrm", "s.yaml:18: methods.1: there is no", "'uniform'?"),
    ("  - uniform", "  - fp32", "s.yaml:18: methods.1: repeats methods.0 (fp32)", "remove one"),
    ("  - uniform", "  - 3", "s.yaml:18: methods.1 is 3: must be a mapping", ""),
    ("- uniform", "- {allocation: uniform, order: ascending}", "s.yaml:18: methods.1.order", ""),
    ("- uniform", "- {allocation: uniform, order: up}", "s.yaml:18: methods.1.order is 'up'", ""),
    ("  - fp32", "  - {allocation: fp32, calibration: minmax}", "s.yaml:17: methods.0.calib", ""),
    ("  - fp32", "  - {allocation: fp32, tuned_on: own}", "s.yaml:17: methods.0.tuned_on", ""),
    ("shuffled, draws", "linear, draws", "s.yaml:22: methods.3.draws: linear", "remove it"),
    ("shuffled, draws: 3", "shuffled, calibration: []", "s.yaml:22: methods.3.calibration", ""),
    ("shuffled, draws: 3", "shuffled, rounding: []", "s.yaml:22: methods.3.rounding", "name at"),
    (
        "  - uniform",
        "  - {allocation: uniform, rounding: neares}",
        "s.yaml:18: methods.1.round",
        "?",
    ),
    (
        "- uniform",
        "- {allocation: uniform, losses: own}",
        "s.yaml:18: methods.1.losses",
        "remove it",
    ),
    ("  - fp32", "  - {allocation: fp32, rounding: scaled}", "s.yaml:17: methods.0.rounding", ""),
    ("engine:\n", "quantization: {weights: {group: 48}}\nengine:\n", "s.yaml:23: quant", "32, 64"),
    ("[minmax, cosine]", "[cosine, cosine]", "s.yaml:20: methods.2.calibration.1", "twice"),
    ("[own, other]", "[own, ru]", "s.yaml:21: methods.2.tuned_on.1: 'ru' is not a", "es, no"),
    ("kind: ray", "threads: two", "s.yaml:24: engine.threads is 'two'", "whole number"),
    ("engine:\n", "quantization: {weights: row}\nengine:\n", "s.yaml:23: quant", "per_tensor"),
    ("id: some/whisper", "id: $FEDSIM_UNSET/x", "s.yaml:8: model.id", "$FEDSIM_UNSET"),
    ("id: some/whisper", "id: cache:../x", "s.yaml:8: model.id", "cache:NAME"),
    ("id: some/whisper", "id: ''", "s.yaml:8: model.id is ''", "must not be empty"),
]


def test_a_mistake_is_one_line_with_its_place(refuse):
    for old, new, start, words in MISTAKES:
        assert FULL.count(old) == 1
        lines = refuse(FULL.replace(old, new))
        assert len(lines) == 1, lines
        assert lines[0].startswith(start), lines
        assert words in lines[0], lines


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_lines(refuse):
    text = FULL.replace("seed: 7", "seed: x").replace("- uniform", "- unifrm")
    text = text.replace("kind: ray", "kid: ray").replace("window_s: 10", "window_s: 99")
    places = [line.split(" ")[0] for line in refuse(text)]
    assert places == ["s.yaml:6:", "s.yaml:9:", "s.yaml:18:", "s.yaml:24:"]


NOT_YAML = [
    ("", "s.yaml: the file is empty"),
    ("# only a comment\n", "s.yaml: the file is empty"),
    ("- a\n- b\n", "s.yaml:1: a scenario is not a mapping"),
    ("just words\n", "s.yaml:1: a scenario is not a mapping"),
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
    ("[" * 5000, "s.yaml:1: lists or mappings are nested more than 50 deep"),
]


def test_text_that_is_not_a_yaml_mapping(refuse):
    for text, start in NOT_YAML:
        (line,) = refuse(text)
        assert line.startswith(start), line


OVERRIDES = [
    ("seed", "write key=value"),
    ("=3", "write key=value"),
    ("a..b=3", "write key=value"),
    ("quantization.wieghts=per_tensor", "unknown key 'wieghts' in quantization: did you mean"),
    ("quantisation.weights=per_tensor", "unknown key 'quantisation': did you mean 'quantiz"),
    ("methods.9.draws=2", "methods has no item '9': it has items 0 to 3"),
    ("methods.1.calibratin=cosine", "unknown key 'calibratin' in methods.1: did you mean"),
    ("methods.0=unifrm", "methods.0: there is no allocation 'unifrm': did you mean"),
    ("seed.x=3", "seed is '7' and has no part 'x'"),
    ("seed=[1", "not YAML"),
    ("seed=true", "seed is true: must be a whole number"),
]


def test_a_mistake_in_an_override_names_the_override(refuse):
    for override, words in OVERRIDES:
        (line,) = refuse(FULL, override)
        assert line.startswith(f"--set {override}: "), line
        assert words in line, line
