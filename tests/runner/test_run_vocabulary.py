"""A run whose model files hold the words of each client's language: sizes, files, own tokens."""

from __future__ import annotations

import os

import pytest
import toys
import vocabulary_toys

from fedsim import load_personalized
from fedsim.engine import EngineSettings, kept_running
from fedsim.quant import modelfile
from fedsim.results.ledger import Ledger
from fedsim.runner.preflight import preflight
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario
from fedsim.speech.corpus import open_clients
from fedsim.speech.models import load_model

TEXTS = {"en": "gatto gatto perro", "it": "casa casa cane gatto perro zorro"}
METHODS = [
    "fp32",
    {"allocation": "uniform", "calibration": ["minmax", "none"]},
    {"allocation": "myqasr", "calibration": "cosine", "rounding": "nearest"},
]
ALWAYS = 256 + len(toys.whisper_special())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return vocabulary_toys.save(tmp_path_factory.mktemp("words") / "whisper")


@pytest.fixture(scope="module")
def write(tmp_path_factory, model):
    """Write the scenario: two Italian speakers, one of English, three rows of their own each."""
    home = tmp_path_factory.mktemp("vocabulary")
    for language, text in TEXTS.items():
        (home / f"{language}.txt").write_text(text)
    speakers = ["ann", "bea", "cid"]
    toys.write_corpus(home / "clips", speakers, each=4, languages=["it", "en", "it"])

    def write(**sections):
        settings = {
            "model": {
                "id": str(model),
                "batch_size": 4,
                "vocabulary": {"words": 4, "own": 3, "words_from": "{language}.txt"},
            },
            "corpus": {
                "path": "clips",
                "group_by": "speaker",
                "tuning_clips": 2,
                "test_clips": 2,
            },
            "clients": {"budget_mb": 0.075},
            "quantization": {"rounding": "scaled"},
            "methods": METHODS,
            "save_models": True,
        }
        return load_scenario(toys.write_scenario(home / "toy.yaml", **(settings | sections)))

    return write


@pytest.fixture(scope="module")
def result(write, tmp_path_factory):
    return run_scenario(write(), tmp_path_factory.mktemp("run") / "run")


def files_of(result):
    return {path.name: path for path in result.folder.models.iterdir()}


def test_every_file_has_the_size_in_the_table(result, model):
    """To the byte, at most the budget; the two languages differ in rows."""
    assert result.failures == []
    layers = load_model(model).layers
    rows = {}
    with Ledger(result.folder.ledger) as ledger:
        sizes = {(row.client, row.method): row for row in ledger.rows()}
    for name, path in files_of(result).items():
        client, method = name.removesuffix(".safetensors").split("-", 1)
        row = next(r for (c, m), r in sizes.items() if c == client and _same(m, method))
        assert row.file_bytes == os.path.getsize(path) <= row.budget_bytes
        rows.setdefault(client, set()).add(modelfile.read(path, layers).rows.count)
    # Four words in one language, two in the other; with a space before each too.
    assert rows == {"ann": {ALWAYS + 8 + 3}, "cid": {ALWAYS + 8 + 3}, "bea": {ALWAYS + 4 + 3}}


def _same(method, name):
    return name.startswith("".join(c if c.isalnum() or c in "-_." else "_" for c in method))


def test_own_tokens_stay_on_the_device(result, model):
    """Files of one language differ in rows, and the server's messages name none of them."""
    layers = load_model(model).layers
    kept = {n: modelfile.read(p, layers).rows for n, p in files_of(result).items()}
    ann, cid = (next(r for n, r in kept.items() if n.startswith(who)) for who in ("ann", "cid"))
    assert ann.count == cid.count
    assert ann.key != cid.key


def test_a_file_is_enough_to_load_it(result, model):
    for path in files_of(result).values():
        pm = load_personalized(path)
        assert pm.nbytes == os.path.getsize(path)
        pm.transcribe(toys.clips([0.4]))


@pytest.mark.slow
def test_ray_gives_the_same_results_to_the_byte(result, write, tmp_path):
    with kept_running("ray", 2, EngineSettings(workers=2)):
        scenario = write(engine={"kind": "ray", "workers": 2})
        other = run_scenario(scenario, tmp_path / "run")
    assert other.failures == []
    assert other.folder.results.read_bytes() == result.folder.results.read_bytes()
    for name, path in files_of(result).items():
        assert (other.folder.models / name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("moments", ["public", "own"])
def test_models_of_other_languages(write, tmp_path, moments):
    """A model tuned on another client holds the words of the one that tests it."""
    scenario = write(
        methods=[{"allocation": "myqasr", "calibration": "minmax", "tuned_on": ["own", "each"]}],
        quantization={"rounding": "compensated", "moments": moments},
        clients={"budget_mb": 1.0},
    )
    result = run_scenario(scenario, tmp_path / "run")
    assert result.failures == []
    with Ledger(result.folder.ledger) as ledger:
        rows = list(ledger.rows())
    assert {(row.client, row.tuned_on) for row in rows} == {
        (a, b) for a in ("ann", "bea", "cid") for b in ("ann", "bea", "cid")
    }
    sizes = {who: {row.file_bytes for row in rows if row.client == who} for who in ("ann", "bea")}
    assert all(len(found) == 1 for found in sizes.values())
    assert sizes["ann"] != sizes["bea"]


def test_preflight_knows_the_sizes(write):
    scenario = write()
    lines = list(preflight(scenario, open_clients(scenario.corpus, scenario.clients, 0)))
    assert any(line.startswith("size:") for line in lines)


def test_the_release_of_a_plan(write, tmp_path):
    """A device that plans for itself knows the sizes of its language."""
    scenario = write(
        methods=[{"allocation": "myqasr", "calibration": "minmax"}], privacy={"release": "plan"}
    )
    result = run_scenario(scenario, tmp_path / "run")
    assert result.failures == []
    for path in files_of(result).values():
        assert os.path.getsize(path) <= int(0.075 * 2**20)


def test_the_ledger_counts_the_language(result):
    """It is sent because the server needs it, and only then."""
    with Ledger(result.folder.ledger) as ledger:
        sent = [release for release in ledger.all_releases() if "language" in repr(release)]
    assert len(sent) == 3
