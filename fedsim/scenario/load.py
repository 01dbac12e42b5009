"""Scenario files: strict YAML in, a checked `Scenario` out, or one line for each mistake."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fedsim.base.files import read_text
from fedsim.base.paths import is_path, resolve
from fedsim.base.yamltree import (
    MAX_BYTES,
    OVERRIDE,
    Problem,
    compose,
    find,
    item_index,
    place,
    plain,
    problem,
    replace,
)
from fedsim.errors import FedsimError, on_a_screen, shortened
from fedsim.scenario.clock import ClockSettings
from fedsim.scenario.corpus import CorpusSettings
from fedsim.scenario.explain import explain
from fedsim.scenario.matrix import expand
from fedsim.scenario.schema import Scenario

_MAX_SUMMARY = 300
"""Characters of a scenario's summary in a list."""
_FLEET_FILES = ("catalogue", "trace")


def load_scenario(path: str | Path, overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario file, with `key=value` overrides, as `--set` gives them, on top.

    An override's key is dotted, list items by index (`methods.0.calibration`); its value is YAML.
    Paths in `model`, `corpus` and `fleet` become absolute, see `fedsim.base.paths.resolve`.

    Raises:
        FedsimError: one line for each mistake: `file:line: `, the key, its value, what is allowed.
    """
    path = Path(path)
    text = _read(path)
    try:
        root = compose(text, str(path))
        if root is None:
            raise Problem(str(path), 0, "the file is empty: write a scenario into it")
        if not isinstance(root, MappingNode):
            raise problem(root, "a scenario is not a mapping: write one 'key: value' per line")
        for override in overrides:
            _override(root, override)
    except Problem as error:
        raise FedsimError(str(error)) from None
    try:
        scenario = Scenario.model_validate(plain(root))
    except ValidationError as error:
        problems = sorted(explain(error, Scenario, root), key=lambda problem: problem.line)
        raise FedsimError("\n".join(map(str, problems))) from None
    scenario = _resolve_paths(scenario, root, path.parent)
    _check_clock(scenario, place(find(root, ["clock"]).key)[0])
    _check_cells(scenario, place(find(root, ["matrix"]).key)[0])
    return scenario


def _check_clock(scenario: Scenario, where: str) -> None:
    """Raise `FedsimError` for a clock in a scenario without a fleet to time."""
    timed = scenario.fleet is not None or any(k.split(".")[0] == "fleet" for k in scenario.matrix)
    if scenario.clock != ClockSettings() and not timed:
        raise FedsimError(
            f"{where}: clock: there is no fleet whose devices it could time: add `fleet`, or remove"
            f" the clock"
        )


def _check_cells(scenario: Scenario, where: str) -> None:
    """Raise `FedsimError` for a combination of the matrix that is not a valid scenario."""
    if not scenario.matrix:
        return
    try:
        expand(scenario)
    except FedsimError as error:
        raise FedsimError(f"{where}: {error}") from None


def describe_scenario(path: Path) -> str:
    """Return the first line of the description in a scenario file, or what is wrong with it."""
    try:
        root = compose(_read(path), str(path))
    except (Problem, FedsimError) as error:
        return shortened(f"cannot be read: {on_a_screen(str(error))[0]}", _MAX_SUMMARY)
    description = plain(find(root, ["description"]).value) if root is not None else None
    lines = description.strip().splitlines() if isinstance(description, str) else []
    return shortened(on_a_screen(lines[0])[0], _MAX_SUMMARY) if lines else ""


def _read(path: Path) -> str:
    if os.path.isdir(path):
        raise FedsimError(f"{path}: this is a folder: name the YAML file in it")
    return read_text(path, MAX_BYTES)


def _override(root: MappingNode, override: str) -> None:
    name = OVERRIDE + override
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise Problem(name, 0, "not an override: write key=value, such as clients.budget_mb=40")
    value = compose(text, name)
    if value is None:
        value = compose("null", name)
    assert value is not None
    if parts[0] == "methods" and len(parts) > 2:
        _expand_bare_method(root, parts[1])
    replace(root, parts, value)


def _expand_bare_method(root: MappingNode, index: str) -> None:
    """Turn `- uniform` into `- allocation: uniform`, so that an override can add keys to it."""
    methods = find(root, ["methods"]).value
    if not isinstance(methods, SequenceNode):
        return
    place_in_list = item_index(index, len(methods.value))
    for i, node in enumerate(methods.value):
        if i == place_in_list and isinstance(node, ScalarNode):
            key = ScalarNode("tag:yaml.org,2002:str", "allocation", node.start_mark, node.end_mark)
            pairs = [(key, node)]
            methods.value[i] = MappingNode(
                "tag:yaml.org,2002:map", pairs, node.start_mark, node.end_mark
            )


def _resolve_paths(scenario: Scenario, root: Node, base: Path) -> Scenario:
    def resolved(text: str, *path: str, exists: bool = True) -> str:
        node = find(root, path).value
        where = place(node)[0]
        # A path in an override is relative to the working folder, not to the file.
        start = Path() if where.startswith(OVERRIDE) else base
        try:
            place_of = resolve(text, start)
            return place_of if exists or is_path(place_of) else resolve(f"./{text}", start)
        except FedsimError as error:
            raise FedsimError(f"{where}: {'.'.join(path)}: {error}") from None

    model, corpus = scenario.model, scenario.corpus
    model = model.model_copy(update={"id": resolved(model.id, "model", "id")})
    if model.vocabulary is not None and model.vocabulary.words_from is not None:
        # A name with `{language}` in it is no file that exists.
        keys = "model", "vocabulary", "words_from"
        words = resolved(model.vocabulary.words_from, *keys, exists=False)
        vocabulary = model.vocabulary.model_copy(update={"words_from": words})
        model = model.model_copy(update={"vocabulary": vocabulary})
    matrix = dict(scenario.matrix)
    for key in matrix.keys() & {"model.id", "corpus.path", *(f"fleet.{k}" for k in _FLEET_FILES)}:
        matrix[key] = tuple(resolved(str(value), "matrix", key) for value in matrix[key])
    if "fleet" in matrix:
        matrix["fleet"] = tuple(
            {
                k: resolved(str(v), "matrix", "fleet") if v and k in _FLEET_FILES else v
                for k, v in value.items()
            }
            if isinstance(value, dict)
            else value
            for value in matrix["fleet"]
        )
    corpus = _resolve_corpus(corpus, resolved, "corpus")
    quantization = scenario.quantization
    if quantization.public_clips is not None:
        public = _resolve_corpus(
            quantization.public_clips, resolved, "quantization", "public_clips"
        )
        quantization = quantization.model_copy(update={"public_clips": public})
    fleet = scenario.fleet
    if fleet is not None:
        places = {key: getattr(fleet, key) for key in _FLEET_FILES}
        found = {key: resolved(text, "fleet", key) for key, text in places.items() if text}
        fleet = fleet.model_copy(update=found)
    changed = {"model": model, "corpus": corpus, "matrix": matrix, "fleet": fleet}
    return scenario.model_copy(update={**changed, "quantization": quantization})


def _resolve_corpus(
    corpus: CorpusSettings, resolved: Callable[..., str], *section: str
) -> CorpusSettings:
    if corpus.path is not None:
        corpus = corpus.model_copy(update={"path": resolved(corpus.path, *section, "path")})
    if corpus.speakers is not None:
        listed = resolved(corpus.speakers, *section, "speakers")
        corpus = corpus.model_copy(update={"speakers": listed})
    people = corpus.population
    if people is not None and people.sentences is not None:
        listed = resolved(people.sentences, *section, "population", "sentences")
        people = people.model_copy(update={"sentences": listed})
        corpus = corpus.model_copy(update={"population": people})
    return corpus
