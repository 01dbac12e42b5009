"""An MMS model whose clients speak several languages: each is served by that of its language."""

from __future__ import annotations

import os
import re
import shutil

import mms_toys
import pyarrow.parquet as pq
import pytest
import toys
from own_engine import PassingGrid

from fedsim import load_model, load_personalized
from fedsim.audit.run import audit_run
from fedsim.audit.voices import open_voices
from fedsim.engine import EngineSettings, kept_running
from fedsim.errors import FedsimError
from fedsim.fleet.timeline import from_arrow
from fedsim.quant import modelfile
from fedsim.results.ledger import Ledger
from fedsim.runner.preflight import preflight
from fedsim.runner.single import resume_run, run_scenario
from fedsim.scenario import load_scenario
from fedsim.speech.corpus import open_clients
from fedsim.study.by_language import KEPT

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


def one_by_one(write, folder, result, fixed=lambda language: {}, **sections):
    """Check each client against a run of those who speak its language, with target_lang fixed.

    `fixed` gives the sections that differ in such a run.
    """
    for language, name in NAMES.items():
        keys = [key for key, spoken in SPEAKS.items() if spoken == language]
        chosen = sections | fixed(language)
        chosen["clients"] = SETTINGS["clients"] | chosen.get("clients", {}) | {"select": keys}
        alone = run_scenario(write({"target_lang": name}, **chosen), folder / name)
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
    seen = set()
    layers = {name: load_model(home / "mms", target_lang=name).layers for name in NAMES.values()}
    for path in result.folder.models.glob("*-uniform_none*"):
        name = NAMES[SPEAKS[path.name.split("-", 1)[0]]]
        assert modelfile.read(path, layers[name]).manifest.settings["target_lang"] == name
        seen.add(name)
        pm = load_personalized(path)
        assert pm.nbytes == os.path.getsize(path)
        assert set(pm.transcribe(toys.clips([0.5]))[0]) <= {*mms_toys.VOCABULARIES[name], " "}
    assert seen == set(NAMES.values())


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
    assert sorted(sent) == sorted(SPEAKS)


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


def public(home, language):
    """Public clips of one language, of all for `all`."""
    path = home / "public" / language
    if not path.exists():
        spoken = list(NAMES) if language == "all" else [language]
        names = [f"{code}-{i}" for code in spoken for i in range(2)]
        codes = [name.split("-")[0] for name in names]
        toys.write_corpus(path, names, each=3, languages=codes)
        for name in names if language != "all" else ():  # the very clips that are among all
            for i in range(3):
                shutil.copy(home / "public/all" / name / f"{i}.wav", path / name / f"{i}.wav")
    corpus = {"group_by": "speaker", "path": str(path), "tuning_clips": 2, "test_clips": 1}
    return {"public_clips": corpus, "public_count": 8}


@pytest.mark.slow
@pytest.mark.parametrize("moments", ["public", "own", "blend"])
def test_second_moments_are_those_of_the_language(write, home, tmp_path, moments):
    rounding = {"rounding": "compensated", "moments": moments}
    methods = [{"allocation": "myqasr", "calibration": "minmax"}]
    sections = {"methods": methods, "quantization": rounding | public(home, "all")}
    result = run_scenario(write(**sections), tmp_path / "run")
    assert result.failures == []

    def fixed(language):
        return {"quantization": rounding | public(home, language)}

    one_by_one(write, tmp_path, result, fixed, **sections)


@pytest.mark.slow
@pytest.mark.parametrize("losses", ["public", "own"])
def test_losses_are_those_of_the_language(write, home, tmp_path, losses):
    methods = [{"allocation": "knapsack", "losses": losses, "calibration": "minmax"}]
    sections = {"methods": methods, "quantization": public(home, "all")}
    result = run_scenario(write(**sections), tmp_path / "run")
    assert result.failures == []

    def fixed(language):
        return {"quantization": public(home, language)}

    one_by_one(write, tmp_path, result, fixed, **sections)


def test_a_device_plans_for_its_language(write, tmp_path):
    sections = {
        "methods": [{"allocation": "myqasr", "calibration": "minmax"}],
        "privacy": {"release": "plan"},
        "study": False,
    }
    result = run_scenario(write(**sections), tmp_path / "run")
    assert result.failures == []
    sizes = {row.client: row.file_bytes for row in result.rows}
    assert all(row.file_bytes <= row.budget_bytes for row in result.rows)
    assert sizes.keys() == SPEAKS.keys()


def test_plans_of_other_clients_are_tried_in_ones_own_language(write, tmp_path):
    """Their depths, the tester's weights; what cannot be moved between languages is refused."""
    tuned = {"allocation": "myqasr", "tuned_on": ["own", "each"]}
    scenario = write(methods=[tuned | {"calibration": ["float", "dynamic"]}])
    result = run_scenario(scenario, tmp_path / "run")
    assert result.failures == []
    assert {(row.client, row.tuned_on) for row in result.rows} == {
        (a, b) for a in SPEAKS for b in SPEAKS
    }
    # Whoever tests, a file of its language: as large as its head.
    alone = {row.client: row for row in result.rows if row.client == row.tuned_on}
    same = [r for r in result.rows if r.plan_sha256 == alone[r.client].plan_sha256]
    assert all(row.file_bytes == alone[row.client].file_bytes for row in same)
    for cell in (
        {"calibration": "minmax"},
        {"calibration": "none"},
        {"calibration": "float", "rounding": "compensated", "moments": "own"},
    ):
        scenario = write(methods=[tuned | cell])
        with pytest.raises(FedsimError, match=r"only bit depths fit .*; use tuned_on: own, or cal"):
            run_scenario(scenario, tmp_path / str(cell))


@pytest.mark.slow
def test_devices_of_a_fleet_fetch_the_model_of_their_language(write, home, tmp_path):
    """On the virtual clock a device fetches its full model, its messages and its very file."""
    toy = {"share": 1, "budget_mb": 0.05, "bit_depths": [2, 4, 8], "memory_mb": 5}
    chosen = write(
        fleet={"devices": {"mid_phone": toy}, "clip_s": 0.5},
        clients={},
        methods=[{"allocation": "myqasr", "calibration": "cosine", "rounding": "nearest"}],
    )
    result = run_scenario(chosen, tmp_path / "run")
    assert result.failures == []
    size = {row.client: row.file_bytes for row in result.rows}
    full = {}
    for client, spoken in SPEAKS.items():
        module = load_model(home / "mms", target_lang=NAMES[spoken]).module
        full[client] = sum(4 * tensor.numel() for tensor in module.state_dict().values())
    with Ledger(result.folder.ledger) as ledger:
        sent = ledger.message_bytes()
    lines = from_arrow(pq.read_table(result.folder.timeline))
    assert {line.client for line in lines} == set(size)
    for line in lines:
        messages = sum(n for (_, way), n in sent[line.client].items() if way == "down")
        assert line.down_bytes == messages + full[line.client] + size[line.client]
    assert len(set(full.values())) == 2  # Greek has fewer letters


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
    corpus = SETTINGS["corpus"] | {"path": str(tmp_path / "clips")}
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
        "corpus": SETTINGS["corpus"] | {"tuning_clips": 1, "test_clips": 1},
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
@pytest.mark.parametrize(
    "privacy", [{"release": "quantized", "bits": 4}, {"release": "cohort", "cohort": {"size": 4}}]
)
def test_bounds_are_common_to_all_languages(write, tmp_path, privacy):
    """One release of the profile, whichever language's model it is of; an audit senses alike."""
    scenario = write(
        methods=[{"allocation": "myqasr", "calibration": "minmax"}],
        privacy=privacy | {"public_voices": 4},
        study=False,
    )
    result = run_scenario(scenario, tmp_path / "run")
    assert result.failures == []
    assert {row.client for row in result.rows} == set(SPEAKS)
    assert list(audit_run(tmp_path / "run", 2))


@pytest.mark.slow
def test_an_audit_senses_as_devices_do(write, result):
    """To the last bit, each speaker through the model of its language."""
    voices = open_voices(write())
    with Ledger(result.folder.ledger) as ledger:
        for sensed in ledger.sensed():
            assert tuple(voices.first([sensed.client])[sensed.client]) == sensed.sensitivity
