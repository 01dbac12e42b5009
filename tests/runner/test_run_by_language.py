"""An MMS model whose clients speak several languages: each is served by that of its language."""

from __future__ import annotations

import os
import re

import mms_toys
import pytest
import toys
from own_engine import PassingGrid

from fedsim import load_model, load_personalized
from fedsim.audit.voices import open_voices
from fedsim.engine import EngineSettings, kept_running
from fedsim.errors import FedsimError
from fedsim.quant import modelfile
from fedsim.results.ledger import Ledger
from fedsim.runner.preflight import preflight
from fedsim.runner.single import resume_run, run_scenario
from fedsim.scenario import load_scenario
from fedsim.speech.corpus import open_clients
from fedsim.study.by_language import KEPT


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return mms_toys.save_study(tmp_path_factory.mktemp("by-language"))


@pytest.fixture(scope="module")
def write(home):
    return mms_toys.writer(home)


@pytest.fixture(scope="module")
def result(write, tmp_path_factory):
    return run_scenario(write(), tmp_path_factory.mktemp("run") / "run")


def test_each_client_is_as_in_a_run_of_its_language(write, result, tmp_path):
    """Rows, plans, sensitivities and model files, to the byte."""
    assert result.failures == []
    assert {row.client for row in result.rows} == set(mms_toys.SPEAKS)
    mms_toys.check(result, mms_toys.alone(write, tmp_path))


def test_files_are_loaded_with_their_language(result, home):
    seen = set()
    layers = {
        name: load_model(home / "mms", target_lang=name).layers for name in mms_toys.NAMES.values()
    }
    for path in result.folder.models.glob("*-uniform_none*"):
        name = mms_toys.NAMES[mms_toys.SPEAKS[path.name.split("-", 1)[0]]]
        assert modelfile.read(path, layers[name]).manifest.settings["target_lang"] == name
        seen.add(name)
        pm = load_personalized(path)
        assert pm.nbytes == os.path.getsize(path)
        assert set(pm.transcribe(toys.clips([0.5]))[0]) <= {*mms_toys.VOCABULARIES[name], " "}
    assert seen == set(mms_toys.NAMES.values())


def test_preflight_names_the_languages(write):
    scenario = write()
    lines = list(preflight(scenario, open_clients(scenario.corpus, scenario.clients, 0)))
    assert (
        "languages: each client is served by the adapters of its own: el (ell), en (eng), zzz"
        in lines
    )
    assert any(line.startswith("size: ") for line in lines)


def test_the_ledger_counts_the_language(result):
    with Ledger(result.folder.ledger) as ledger:
        sent = [release.client for release in ledger.all_releases() if release.field == "language"]
    assert sorted(sent) == sorted(mms_toys.SPEAKS)


@pytest.mark.slow
def test_a_run_that_is_cut_off_is_resumed_to_the_same_table(write, result, engine, tmp_path):
    """Whichever languages the server and the devices had before."""
    scenario, out = write(engine={"kind": "own"}), tmp_path / "run"
    engine.wrap = lambda grid: CutOffGrid(grid, requests=7)
    with pytest.raises(PowerCutError):
        run_scenario(scenario, out)
    engine.wrap = lambda grid: grid
    resumed = resume_run(out)
    assert resumed.failures == []
    assert resumed.folder.results.read_bytes() == result.folder.results.read_bytes()


class PowerCutError(BaseException):
    """Nothing in a run catches it."""


class CutOffGrid(PassingGrid):
    """Cuts the power after some requests."""

    def __init__(self, grid, requests):
        super().__init__(grid)
        self.left = requests

    def push(self, message):
        self.left -= 1
        if self.left < 0:
            raise PowerCutError
        return super().push(message)


@pytest.mark.slow
def test_ray_gives_the_same_results_to_the_byte(write, result, tmp_path):
    with kept_running("ray", 2, EngineSettings(workers=2)):
        other = run_scenario(write(engine={"kind": "ray", "workers": 2}), tmp_path / "run")
    assert other.failures == []
    assert other.folder.results.read_bytes() == result.folder.results.read_bytes()
    for path in result.folder.models.iterdir():
        assert (other.folder.models / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("languages", "problem"),
    [
        (
            ["en", "xx"],
            r"client 'bea': language 'xx', for which model .*: known: ell, eng, zzz; cho",
        ),
        (["en", "elk"], r"client 'bea': language 'elk', for which .*: did you mean 'ell'\?"),
        (
            ["", "en"],
            r"client 'ann': model .* each of 3 languages, and the client's is not known; ",
        ),
    ],
)
def test_a_language_without_adapters(write, tmp_path, languages, problem):
    toys.write_corpus(tmp_path / "clips", ["ann", "bea"], each=4, languages=languages)
    corpus = mms_toys.SETTINGS["corpus"] | {"path": str(tmp_path / "clips")}
    scenario = write(corpus=corpus, methods=["fp32"])
    with pytest.raises(FedsimError, match=problem):
        list(preflight(scenario, open_clients(scenario.corpus, scenario.clients, 0)))
    (failure,) = run_scenario(scenario, tmp_path / "run").failures  # and the others go on
    assert re.search(problem.split(";")[0], failure.reason)


@pytest.mark.slow
def test_more_languages_than_are_kept(tmp_path):
    """Clients take turns in more languages than a process keeps: each is served as if alone."""
    letters = {
        f"q{c}": (*toys.LETTERS[:5], *toys.LETTERS[5:][:: (-1) ** i])
        for i, c in enumerate("abcdefghij")
    }
    mms_toys.save(tmp_path / "mms", {"eng": toys.LETTERS, **letters})
    speakers = [f"s{i:02}" for i in range(2 * len(letters))]
    toys.write_corpus(tmp_path / "clips", speakers, each=2, languages=list(letters))
    chosen = {
        "model": {"id": "mms", "batch_size": 4},
        "corpus": mms_toys.SETTINGS["corpus"] | {"tuning_clips": 1, "test_clips": 1},
        "clients": {"budget_mb": 0.05},
        "methods": [{"allocation": "myqasr", "calibration": "minmax"}],
    }
    assert len(letters) > KEPT
    result = run_scenario(
        load_scenario(toys.write_scenario(tmp_path / "a.yaml", **chosen)), tmp_path / "run"
    )
    assert result.failures == []
    for language in list(letters)[:2]:
        keys = [k for i, k in enumerate(speakers) if list(letters)[i % len(letters)] == language]
        chosen["model"]["target_lang"] = language
        chosen["clients"]["select"] = keys
        file = toys.write_scenario(tmp_path / "b.yaml", **chosen)
        alone = run_scenario(load_scenario(file), tmp_path / language)
        assert alone.rows == [row for row in result.rows if row.client in keys]


@pytest.mark.slow
def test_an_audit_senses_as_devices_do(write, result):
    """To the last bit, each speaker through the model of its language."""
    voices = open_voices(write())
    with Ledger(result.folder.ledger) as ledger:
        for sensed in ledger.sensed():
            assert tuple(voices.first([sensed.client])[sensed.client]) == sensed.sensitivity
