"""An MMS model whose clients speak several languages: each is served by that of its language."""

from __future__ import annotations

import os

import mms_toys
import pytest
import toys

from fedsim import load_model, load_personalized
from fedsim.quant import modelfile
from fedsim.results.ledger import Ledger
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario

SPEAKS = {"ann": "en", "bea": "el", "cid": "zzz", "dan": "el"}
NAMES = {"en": "eng", "el": "ell", "zzz": "zzz"}
METHODS = [
    "fp32",
    {"allocation": "uniform", "calibration": ["minmax", "none"]},
    {"allocation": "myqasr", "calibration": "cosine", "rounding": ["nearest", "scaled"]},
]
SETTINGS = {
    "corpus": {"path": "clips", "group_by": "speaker", "tuning_clips": 2, "test_clips": 2},
    "clients": {"budget_mb": 0.05},
    "methods": METHODS,
    "save_models": True,
    "study": True,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("by-language")
    mms_toys.save(folder / "mms")
    toys.write_corpus(folder / "clips", list(SPEAKS), each=4, languages=list(SPEAKS.values()))
    return folder


@pytest.fixture(scope="module")
def write(home):
    def write(model=None, **sections):
        chosen = {"model": {"id": "mms", "batch_size": 4} | (model or {})} | SETTINGS | sections
        return load_scenario(toys.write_scenario(home / "toy.yaml", **chosen))

    return write


@pytest.fixture(scope="module")
def result(write, tmp_path_factory):
    return run_scenario(write(), tmp_path_factory.mktemp("run") / "run")


def of_client(result, client):
    """Rows, plans and model files of one client."""
    with Ledger(result.folder.ledger) as ledger:
        sensed = [s for s in ledger.sensed() if s.client == client]
        plans = [p for p in ledger.plans() if p.client == client]
    rows = [row for row in result.rows if row.client == client]
    files = {p.name: p.read_bytes() for p in result.folder.models.glob(f"{client}-*")}
    return rows, plans, sensed, files


def one_by_one(write, folder, result, **sections):
    """Check each client against a run of the clients of its language, with target_lang fixed."""
    for language, name in NAMES.items():
        keys = [key for key, spoken in SPEAKS.items() if spoken == language]
        clients = SETTINGS["clients"] | sections.get("clients", {}) | {"select": keys}
        fixed = write({"target_lang": name}, **(sections | {"clients": clients}))
        alone = run_scenario(fixed, folder / name)
        assert alone.failures == []
        for key in keys:
            assert of_client(result, key) == of_client(alone, key)
            assert all(of_client(alone, key))


def test_each_client_is_as_in_a_run_of_its_language(write, result, tmp_path):
    """Rows, plans, sensitivities and model files, to the byte."""
    assert result.failures == []
    assert {row.client for row in result.rows} == set(SPEAKS)
    one_by_one(write, tmp_path, result)


def test_files_are_loaded_with_their_language(result, home):
    layers = {name: load_model(home / "mms", target_lang=name).layers for name in NAMES.values()}
    for path in result.folder.models.iterdir():
        name = NAMES[SPEAKS[path.name.split("-", 1)[0]]]
        assert modelfile.read(path, layers[name]).manifest.settings["target_lang"] == name
        pm = load_personalized(path)
        assert pm.nbytes == os.path.getsize(path)
        assert set(pm.transcribe(toys.clips([0.5]))[0]) <= {*mms_toys.VOCABULARIES[name], " "}
