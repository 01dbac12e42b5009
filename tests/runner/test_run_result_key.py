"""The key of a result holds everything that the result depends on, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import ValidationError
from schema_fields import SchemaField, all_fields, changed, inside

from fedsim.errors import FedsimError
from fedsim.privacy.releases import RELEASES
from fedsim.quant.allocation import ALLOCATORS
from fedsim.runner.result_key import (
    NOT_IN_KEY,
    NOT_READ_BY_FULL_PRECISION,
    NOT_READ_WITHOUT_PROFILES,
    ResultKeys,
)
from fedsim.scenario.schema import Scenario
from fedsim.scenario.settings import OneOf

BASE: dict[str, Any] = {
    "name": "toy",
    "model": {"id": "org/model"},
    "corpus": {"kind": "hub", "path": "org/clips", "group_by": "speaker"},
    "clients": {"budget_mb": 30},
    "methods": [{"allocation": "myqasr"}],
    "faults": [{"kind": "crash", "share": 0.5}],
}
VOICES = {
    **BASE,
    "corpus": {"kind": "voices", "population": {"speakers": 4}, "group_by": "speaker"},
}
PRIVACY = {"delta": 1e-6, "budget": {"epsilon": 2.0, "delta": 1e-5}}
WORDS = {"words": 3000, "own": 256, "words_from": None}
VALUES: dict[str, Any] = {
    "model.keep": ["lm_head"],
    "corpus.config": ["one"],
    "corpus.columns": {"text": "words"},
    "corpus.leave_out": ["_silence_"],
    "corpus.population.languages": ["en", "fr"],
    "corpus.population.genders": ["male"],
    "corpus.population.topics": ["music"],
    "corpus.population.place.snr_db": [0, 10],
    "clients.select": ["ann", "bob"],
    "clients.bit_depths": [4, 8],
    "methods.calibration": ["minmax"],
    "methods.runtime": ["onnx"],
    "methods.tuned_on": ["own", "other"],
    "faults.seconds": [1, 3],
    "privacy.layers": [0],
    "privacy.bounds": [0.1, 0.9],
    "privacy.cohort.threshold": 6,
    "privacy.budget.delta": 2e-5,
}
"""Another value of settings for which `other_values` makes none that is valid."""


def is_named(key: str, named: tuple[str, ...]) -> bool:
    """Whether a setting, or a section that it is in, is among these."""
    return any(f"{key}.".startswith(f"{name}.") for name in named)


def other_values(field: SchemaField, value: Any) -> Iterator[Any]:
    """Values of the type of a setting that are not `value`; some may be out of range."""
    name = field.key.replace("quantization.public_clips.", "corpus.")
    if name in VALUES:
        yield VALUES[name]
        return
    for choices in field.metadata(OneOf):
        yield from (name for name in choices.names() if name not in (value, "fp32"))
        return
    kinds = list(inside(field.info.annotation))
    for literal in (kind for kind in kinds if get_origin(kind) is Literal):
        yield from (choice for choice in get_args(literal) if choice != value)
        return
    if bool in kinds:
        yield not value
    elif int in kinds or float in kinds:
        number = value if isinstance(value, int | float) else 0
        yield from (number + 1, number + 3, number - 1, number / 2)
    else:
        yield f"{value or ''}other"


def value_at(scenario: Scenario, path: tuple[str, ...]) -> Any:
    here: Any = scenario
    for key in path:
        here = getattr(here[0] if isinstance(here, tuple) else here, key, None)
    return here


def with_another(field: SchemaField, base: dict[str, Any]) -> Scenario | None:
    """A scenario that differs from `base` in one setting; None if no such one is valid."""
    before = Scenario.model_validate(base)
    for value in other_values(field, value_at(before, field.path)):
        try:
            after = Scenario.model_validate(changed(base, field.path, value))
        except ValidationError:
            continue
        if value_at(after, field.path) != value_at(before, field.path):
            return after
    return None


def key(scenario: Scenario) -> str:
    return ResultKeys().key(scenario, scenario.methods[0])


def voices_for(field: SchemaField) -> dict[str, Any]:
    """Voices; for a setting of their place in one that has all of these."""
    if "place" not in field.path:
        return VOICES
    return changed(VOICES, ("corpus", "population", "place"), {"kind": "noisy"})


def bases(field: SchemaField) -> Iterator[dict[str, Any]]:
    """Scenarios in which a setting may have an effect."""
    if field.path[0] == "privacy":
        for release in RELEASES:
            yield {**BASE, "privacy": {"release": release, **PRIVACY}}
    elif field.path[:2] == ("corpus", "population"):
        yield voices_for(field)
    elif field.path[:2] == ("quantization", "public_clips"):
        public = voices_for(field) if field.path[2:3] == ("population",) else BASE
        yield {**BASE, "quantization": {"public_clips": dict(public["corpus"])}}
    elif field.path[:2] == ("model", "vocabulary"):
        yield {**BASE, "model": {"id": "org/model", "vocabulary": WORDS}}
    elif field.key == "methods.runtime":
        yield {**BASE, "clients": {"budget_mb": 30, "format": "onnx"}}
    elif field.key == "methods.losses":
        for name in ALLOCATORS:
            if ALLOCATORS[name].reads in ("table", "pairs"):
                yield {**BASE, "methods": [{"allocation": name}]}
    elif field.key == "methods.draws":
        yield {**BASE, "methods": [{"allocation": "shuffled"}]}
    elif field.key == "faults.seconds":
        yield {**BASE, "faults": [{"kind": "delay", "share": 0.5, "seconds": [1, 2]}]}
    else:
        yield BASE


NAMED = tuple(name for name in NOT_IN_KEY if name != "methods")
"""`methods` is not among them: the key of a method is that of its settings."""
FIELDS = {field.key: field for field in all_fields()}


def test_every_setting_is_in_the_key_or_named():
    """A setting that is new and for which no other value can be made needs one in `VALUES`."""
    for name, field in FIELDS.items():
        if is_named(name, NAMED):
            continue
        pairs = [(base, with_another(field, base)) for base in bases(field)]
        if not pairs:  # of an allocator that is not installed
            continue
        pairs = [(base, other) for base, other in pairs if other is not None]
        assert pairs, f"{name}: give another valid value in VALUES"
        assert any(key(other) != key(Scenario.model_validate(base)) for base, other in pairs), (
            f"{name} does not change the key: name it in NOT_IN_KEY if no result depends on it"
        )


def test_settings_that_are_named_do_not_change_the_key():
    others = {
        "name": "other",
        "description": "other",
        "engine.kind": "inprocess",
        "engine.workers": 3,
        "engine.address": "head:6379",
        "save_models": True,
        "fleet": {"devices": {"watch": 1}},
        "matrix": {"seed": [1, 2]},
    }
    before = key(Scenario.model_validate(BASE))
    for name, value in others.items():
        assert key(Scenario.model_validate(changed(BASE, tuple(name.split(".")), value))) == before
    timed = {**BASE, "fleet": {"devices": {"watch": 1}}, "clock": {"planners": 2}}
    assert key(Scenario.model_validate(timed)) == before
    more = {**BASE, "methods": [*BASE["methods"], "uniform"]}
    assert key(Scenario.model_validate(more)) == before
    assert {name.split(".")[0] for name in others} | {"clock", "methods"} == set(NOT_IN_KEY)
    assert set(NOT_IN_KEY) <= Scenario.model_fields.keys()


@pytest.mark.parametrize("setting", ["threads", "clients_per_batch", "workers_per_gpu"])
def test_some_settings_of_the_engine_may_change_the_last_digits(setting):
    assert key(Scenario.model_validate({**BASE, "engine": {setting: 2}})) != key(
        Scenario.model_validate(BASE)
    )


def test_workers_of_a_gpu_change_nothing_where_the_clients_of_a_batch_are_given():
    one, two = ({"clients_per_batch": 4, "workers_per_gpu": n} for n in (1, 2))
    assert key(Scenario.model_validate({**BASE, "engine": one})) == key(
        Scenario.model_validate({**BASE, "engine": two})
    )


@pytest.mark.parametrize(
    ("method", "not_read"),
    [
        ("fp32", (*NOT_READ_BY_FULL_PRECISION, *NOT_READ_WITHOUT_PROFILES)),
        pytest.param("uniform", NOT_READ_WITHOUT_PROFILES, marks=pytest.mark.slow),
    ],
)
def test_settings_that_a_method_does_not_read(method, not_read):
    """They change the key of Algorithm 1, and only they do not change that of this method."""
    for name, field in FIELDS.items():
        if is_named(name, NOT_IN_KEY):
            continue
        for base in bases(field):
            base = {**base, "methods": [method]}
            other = with_another(field, base)
            if other is not None and is_named(name, not_read):
                assert key(other) == key(Scenario.model_validate(base)), name
            elif other is not None:
                assert key(other) != key(Scenario.model_validate(base)), name
    for name in not_read:
        assert any(is_named(known, (name,)) for known in FIELDS), f"{name} is not a setting"


def test_a_release_reads_only_its_own_settings():
    """A matrix computes a release once, whatever varies that it does not read."""
    for release in RELEASES:
        settings = RELEASES[release].settings
        if settings is None:  # reads all of them
            continue
        base = {**BASE, "privacy": {"release": release, **PRIVACY}}
        before = key(Scenario.model_validate(base))
        for name, field in FIELDS.items():
            if field.path[0] != "privacy" or name == "privacy.release":
                continue
            other = with_another(field, base)
            if other is not None:
                assert (key(other) != before) == (field.path[1] in settings), (release, name)


@pytest.fixture
def local(tmp_path) -> dict[str, Any]:
    """A scenario whose model, recordings and list of speakers are files."""
    model, clips = tmp_path / "model", tmp_path / "clips"
    for folder in (model, clips / "ann"):
        folder.mkdir(parents=True)
    for shard in (1, 2):
        (model / f"model-{shard:05}-of-00002.safetensors").write_bytes(bytes([shard]) * 64)
    (model / "config.json").write_text("{}")
    (clips / "ann/0.wav").write_bytes(b"0" * 64)
    (clips / "metadata.csv").write_text("file_name,speaker\nann/0.wav,ann\n")
    (tmp_path / "speakers.csv").write_text("speaker,gender\nann,female\n")
    speakers = {"speakers": str(tmp_path / "speakers.csv")}
    corpus = {"path": str(clips), "group_by": "speaker", **speakers}
    return {**BASE, "model": {"id": str(model)}, "corpus": corpus}


FILES = (
    "model/model-00001-of-00002.safetensors",
    "model/model-00002-of-00002.safetensors",
    "model/config.json",
    "clips/ann/0.wav",
    "clips/metadata.csv",
    "speakers.csv",
)


@pytest.mark.parametrize("name", FILES)
def test_a_replaced_file_changes_the_key(local, tmp_path, name):
    """Also one of the same size and time, such as a clip that was recorded again."""
    scenario = Scenario.model_validate(local)
    before, file = key(scenario), tmp_path / name
    replace(file, bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    assert key(scenario) != before


def replace(file: Path, content: bytes) -> None:
    """Write other bytes of the same length into a file, and keep its time."""
    status = file.stat()
    assert len(content) == status.st_size
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_renamed_or_added_file_changes_the_key(local, tmp_path):
    scenario = Scenario.model_validate(local)
    keys = [key(scenario)]
    (tmp_path / "clips/ann/0.wav").rename(tmp_path / "clips/ann/1.wav")
    keys.append(key(scenario))
    (tmp_path / "model/adapter.json").write_text("{}")
    keys.append(key(scenario))
    assert len(set(keys)) == 3


def test_the_same_files_keep_the_key(local, tmp_path):
    """Also written again at another time, as a copy of a folder is."""
    scenario = Scenario.model_validate(local)
    before = key(scenario)
    for name in FILES:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes())
        os.utime(tmp_path / name, (1, 1))
    assert key(scenario) == before
    keys = ResultKeys()
    assert keys.key(scenario, scenario.methods[0]) == before
    assert keys.key(scenario, scenario.methods[0]) == before


def test_a_replaced_file_behind_a_link_changes_the_key(local, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "clips/ann").rename(elsewhere)
    (tmp_path / "clips/ann").symlink_to(elsewhere, target_is_directory=True)
    scenario = Scenario.model_validate(local)
    before = key(scenario)
    replace(elsewhere / "0.wav", b"1" * 64)
    assert key(scenario) != before


def test_a_file_that_cannot_be_read_is_named(local, tmp_path):
    (tmp_path / "clips/ann/1.wav").symlink_to(tmp_path / "nowhere.wav")
    with pytest.raises(FedsimError, match=r"ann/1\.wav cannot be read.*remove it"):
        key(Scenario.model_validate(local))


def test_a_list_of_sentences_is_read(tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_text("open the door\n")
    people = {"speakers": 2, "sentences": str(path)}
    corpus = {"kind": "voices", "population": people, "group_by": "speaker"}
    scenario = Scenario.model_validate({**BASE, "corpus": corpus})
    before = key(scenario)
    replace(path, b"shut the door\n")
    assert key(scenario) != before
