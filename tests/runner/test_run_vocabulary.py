"""A run whose model files hold the words of each client's language: sizes, files, own tokens."""

from __future__ import annotations

import os

import pyarrow.parquet as pq
import pytest
import toys
import vocabulary_toys

from fedsim import load_personalized
from fedsim.engine import EngineSettings, kept_running
from fedsim.fleet.timeline import from_arrow
from fedsim.quant import modelfile
from fedsim.quant.layers import Layer
from fedsim.results.ledger import Ledger
from fedsim.runner.preflight import preflight
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario
from fedsim.speech.corpus import open_clients
from fedsim.speech.models import load_model
from fedsim.study.cost import ModelCost, TrimmedCost, read_cost

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


@pytest.mark.parametrize(
    ("moments", "budget"),
    [pytest.param("public", 0.075, marks=pytest.mark.slow), ("own", 0.075), ("own", 1.0)],
)
def test_models_of_other_languages(write, tmp_path, moments, budget):
    """A model tuned on another client holds the words of the one that tests it, and fits."""
    scenario = write(
        methods=[{"allocation": "myqasr", "calibration": "minmax", "tuned_on": ["own", "each"]}],
        quantization={"rounding": "compensated", "moments": moments},
        clients={"budget_mb": budget},
    )
    result = run_scenario(scenario, tmp_path / "run")
    assert result.failures == []
    with Ledger(result.folder.ledger) as ledger:
        rows = list(ledger.rows())
    assert {(row.client, row.tuned_on) for row in rows} == {
        (a, b) for a in ("ann", "bea", "cid") for b in ("ann", "bea", "cid")
    }
    sizes = {who: {row.file_bytes for row in rows if row.client == who} for who in ("ann", "bea")}
    assert all(row.file_bytes <= row.budget_bytes for row in rows)
    if budget == 1.0:  # 8 bits in every layer of all
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


def test_devices_of_a_fleet_fetch_the_files_of_their_language(write, tmp_path):
    """On the virtual clock a device fetches the full model, its messages and its very file."""
    toy = {"share": 1, "budget_mb": 0.075, "bit_depths": [2, 4, 8], "memory_mb": 5}
    chosen = write(
        fleet={"devices": {"mid_phone": toy}, "clip_s": 0.5},
        clients={},
        methods=[{"allocation": "myqasr", "calibration": "cosine", "rounding": "nearest"}],
    )
    result = run_scenario(chosen, tmp_path / "run")
    assert result.failures == []
    size = {row.client: row.file_bytes for row in result.rows}
    full = read_cost(result.folder.cost).full_bytes
    with Ledger(result.folder.ledger) as ledger:
        sent = ledger.message_bytes()
    lines = from_arrow(pq.read_table(result.folder.timeline))
    assert {line.client for line in lines} == set(size)
    for line in lines:
        messages = sum(n for (_, way), n in sent[line.client].items() if way == "down")
        assert line.down_bytes == messages + full + size[line.client]
    assert len(set(size.values())) == 2  # Italian has more tokens than English


def test_a_smaller_head_is_tested_in_less_time():
    cost = read_cost_of(rows=30)
    whole, trimmed = cost.tested_macs(1, 2, 3, ""), cost.tested_macs(1, 2, 3, "it")
    assert trimmed[0] == whole[0]
    assert trimmed[1] == pytest.approx(whole[1] * 30 / 120)
    assert cost.rounding_macs("it") < cost.rounding_macs()


def read_cost_of(rows):
    """A cost of two layers, of which the second, of 120 rows, keeps some in Italian."""
    layers = (Layer("a", "linear", (10, 10)), Layer("head", "linear", (120, 10), ("embed",)))
    trimmed = {"it": TrimmedCost(1, rows / 120, {4: 20, 8: 40}, 30)}
    return ModelCost(
        *(layers, {4: (50, 100), 8: (100, 200)}, 40, 1200, 330, False, {"full": 1}),
        *((0.0, 0.0), (1.0, 2.0), (3.0, 4.0), 2),
        trimmed=trimmed,
    )
