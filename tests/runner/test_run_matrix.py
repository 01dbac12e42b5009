"""A matrix of settings: the results of separate runs, and nothing computed twice. `study: true`."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import paper
import pytest
import toys
from own_engine import own_engine

from fedsim.errors import FedsimError
from fedsim.results.folder import read_results
from fedsim.results.ledger import Ledger
from fedsim.runner.matrix import run_matrix
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario
from fedsim.scenario.matrix import expand
from fedsim.speech.clips import read_utterance
from fedsim.speech.corpus import open_clients
from fedsim.speech.models.base import tuning_batches
from fedsim.study.model import load_study_model
from fedsim.study.privacy_statement import read_statement

METHODS = [
    "fp32",
    "uniform",
    {"allocation": "myqasr", "tuned_on": ["own", "other"]},
    {"allocation": "shuffled", "draws": 2},
]
MATRIX = {
    "clients.budget_mb": [0.0334, 0.0295],
    "quantization.sensitivity": ["median", "std"],
}


@pytest.fixture(scope="module")
def scenario(tmp_path_factory, model_folder):
    home = tmp_path_factory.mktemp("matrix")
    corpus = toys.write_corpus(home / "clips")
    file = toys.write_scenario(
        home / "toy.yaml",
        model={"id": str(model_folder("ctc-group")), "batch_size": 4},
        corpus={"path": str(corpus), "group_by": "speaker", "tuning_clips": 2, "test_clips": 2},
        clients={"budget_mb": 0.03, "limit": 3},
        quantization=paper.QUANTIZATION,
        methods=METHODS,
        study=True,
        matrix=MATRIX,
    )
    return load_scenario(file)


def on_own(scenario):
    """The scenario on the engine that a test has added."""
    engine = scenario.engine.model_copy(update={"kind": "own"})
    return scenario.model_copy(update={"engine": engine})


@pytest.fixture(scope="module")
def results(scenario, tmp_path_factory):
    """The matrix once run; `computed` are the methods of each run that a grid was opened for."""
    home = tmp_path_factory.mktemp("runs")
    with own_engine() as engine:
        cells = run_matrix(on_own(scenario), home / "first")
    computed = []
    for _, run_config in engine.opened:
        methods = json.loads(run_config["scenario"])["methods"]
        computed.append([(method["allocation"], *method["tuned_on"]) for method in methods])
    return home, cells, computed


def test_every_combination_the_last_key_fastest(scenario, results):
    _, cells, _ = results
    expected = [
        {"clients.budget_mb": b, "quantization.sensitivity": s}
        for b in MATRIX["clients.budget_mb"]
        for s in MATRIX["quantization.sensitivity"]
    ]
    assert [cell.settings for cell in cells] == expected
    for cell in expand(scenario):
        assert cell.scenario.clients.budget_mb == cell.settings["clients.budget_mb"]
        assert cell.scenario.quantization.sensitivity == cell.settings["quantization.sensitivity"]
        assert cell.scenario.matrix == {}
        assert cell.scenario.corpus == scenario.corpus


def test_only_what_depends_on_a_setting_is_computed_again(results):
    _, _, computed = results
    own, other = ("myqasr", "own"), ("myqasr", "other")
    flat, random = ("uniform", "own"), ("shuffled", "own")
    assert computed == [
        [("fp32",), flat, own, other, random],  # everything
        [own, other],  # another measure: plans that read none stay
        [flat, own, other, random],  # another budget: full precision stays
        [own, other],
    ]


def test_each_combination_is_what_its_own_run_would_be(scenario, results, engine, tmp_path):
    _, cells, _ = results
    for i, cell in enumerate(expand(scenario)):
        alone = run_scenario(cell.scenario, tmp_path / str(i))
        assert cells[i].result.rows == alone.rows
        assert cells[i].result.rows == read_results(cells[i].result.folder.results)
        ledgers = [Ledger(r.folder.ledger) for r in (alone, cells[i].result)]
        assert list(ledgers[0].plans()) == list(ledgers[1].plans())
        assert [s.client for s in ledgers[0].sensed()] == [s.client for s in ledgers[1].sensed()]
        saved = load_scenario(cells[i].result.folder.scenario)
        assert saved.model_copy(update={"engine": cell.scenario.engine}) == cell.scenario


def test_a_second_run_computes_nothing_and_a_wider_one_only_what_is_new(scenario, results, engine):
    home, cells, _ = results
    again = run_matrix(on_own(scenario), home / "again")
    assert engine.opened == []
    assert [c.result.rows for c in again] == [c.result.rows for c in cells]

    wider = scenario.model_copy(
        update={
            "matrix": {"clients.budget_mb": (0.032, 0.0295), "quantization.sensitivity": ("std",)}
        }
    )
    found = run_matrix(on_own(wider), home / "wider")
    assert len(engine.opened) == 1
    assert found[1].result.rows == cells[3].result.rows
    assert {row.budget_bytes for row in found[0].result.rows} == {int(0.032 * 2**20)}


@pytest.mark.slow
def test_runs_beside_it_that_cannot_be_read_are_left_alone(scenario, results, engine, tmp_path):
    """One was written by an older fedsim, one is damaged: their results are computed again."""
    home, cells, _ = results
    for name in ("older", "damaged", "no-index"):
        shutil.copytree(home / "first", tmp_path / name)
    for ledger in (tmp_path / "older").rglob("ledger.sqlite"):
        with closing(sqlite3.connect(ledger)) as database:
            database.execute("PRAGMA user_version = 7")
    for ledger in (tmp_path / "damaged").rglob("ledger.sqlite"):
        ledger.write_bytes(b"\0" * 4096)
    (tmp_path / "no-index" / "matrix.json").write_text("{")
    again = run_matrix(on_own(scenario), tmp_path / "run")
    assert len(engine.opened) == len(cells)
    assert [c.result.rows for c in again] == [c.result.rows for c in cells]


def test_a_method_that_reads_nothing_passes_no_statement_on(scenario, tmp_path):
    """Its rows are those of any release; the privacy statement beside them is of another."""
    methods = {"methods": scenario.methods[:2]}
    plain, ranked = (
        scenario.model_copy(update={**methods, "matrix": {"privacy": ({"release": name},)}})
        for name in ("values", "ranks")
    )
    (first,) = run_matrix(plain, tmp_path / "a")
    (second,) = run_matrix(ranked, tmp_path / "b")
    assert second.result.rows == first.result.rows
    assert read_statement(first.result.folder.privacy).release == "values"
    made = read_statement(second.result.folder.privacy)
    assert made is None or made.release == "ranks"


def test_another_seed_shares_nothing(scenario, results):
    home, cells, _ = results
    other = scenario.model_copy(update={"seed": 9, "matrix": {"clients.budget_mb": (0.0295,)}})
    (cell,) = run_matrix(other, home / "seed")
    assert {r.client: r.plan_sha256 for r in cell.result.rows if "shuffled" in r.method} != {
        r.client: r.plan_sha256 for r in cells[2].result.rows if "shuffled" in r.method
    }


def test_a_failed_client_is_tried_again(scenario, tmp_path):
    """A cell with a failure is not known to the next: its client may finish another time."""
    one = scenario.model_copy(update={"matrix": {"seed": (4,)}})
    short = one.model_copy(update={"corpus": one.corpus.model_copy(update={"test_clips": 99})})
    (failed,) = run_matrix(short, tmp_path / "a")
    assert len(failed.result.failures) == 3
    (again,) = run_matrix(short, tmp_path / "b")
    assert again.result.failures == failed.result.failures


def test_clip_counts_add_up_to_the_rows(results):
    """`study: true`: the counts of each clip, which the sums of a row must be."""
    _, cells, _ = results
    with Ledger(cells[0].result.folder.ledger) as ledger:
        plans = {(p.client, p.method, p.tuned_on): p for p in ledger.plans()}
        sent = {(r.stage, r.field): r.bytes for r in ledger.all_releases() if r.direction == "up"}
    assert sent["evaluate", "clip_wrong"] > 0
    assert sent["sense", "quantiles"] > 0
    rows = cells[0].result.rows
    assert len(plans) == len(rows)
    for row in rows:
        plan = plans[row.client, row.method, row.tuned_on]
        assert (sum(plan.wrong), sum(plan.of)) == (row.errors, row.words)
        assert len(plan.wrong) == len(plan.of) == row.clips
        assert bool(plan.bits) == (row.method != "fp32")


def test_without_study_no_clip_counts_leave(scenario, tmp_path):
    plain = replace_study(scenario)
    result = run_scenario(plain, tmp_path / "run")
    with Ledger(result.folder.ledger) as ledger:
        assert all(p.wrong == () == p.of for p in ledger.plans())
        sent = {r.field: r.bytes for r in ledger.all_releases() if r.direction == "up"}
        assert (sent["clip_wrong"], sent["clip_of"], sent["quantiles"]) == (0, 0, 0)
        assert all(len(s.sensitivity) > 1 and s.quantiles == () for s in ledger.sensed())


def test_the_distribution_of_each_layers_output(scenario, results):
    """A study keeps 33 quantiles per layer: ascending, and their middle is what numpy finds."""
    _, cells, _ = results
    with Ledger(cells[0].result.folder.ledger) as ledger:
        sensed = {s.client: np.reshape(s.quantiles, (-1, 33)) for s in ledger.sensed()}
    assert set(sensed) == {row.client for row in cells[0].result.rows}
    model = load_study_model(scenario).model
    clients = open_clients(scenario.corpus, scenario.clients, scenario.seed)
    seen = []
    for key, found in sensed.items():
        assert found.shape == (len(model.layers), 33)
        assert (np.diff(found) >= 0).all()
        outputs = []
        module = dict(model.module.named_modules())[model.layers[0].name]
        hook = module.register_forward_hook(lambda m, a, out, kept=outputs: kept.append(out))
        clips = [read_utterance(u) for u in clients[key].tuning]
        for batch in tuning_batches(model, clips, None):
            model.forward(batch)
        hook.remove()
        flat = np.concatenate([out.detach().numpy().ravel() for out in outputs])
        np.testing.assert_allclose(found[0, [0, 16, 32]], np.quantile(flat, [0, 0.5, 1]), rtol=1e-6)
        seen.append(found)
    assert not np.array_equal(seen[0], seen[1])


def replace_study(scenario):
    return scenario.model_copy(update={"study": False, "matrix": {}})


WRONG = [
    ("{clients.budget_mb: []}", "the list is empty: add a value"),
    ("{clients.budget_mb: [1, 1]}", "listed twice"),
    ("{clients.budget: [1]}", r"clients.budget=1: unknown key .budget. in clients"),
    ("{clients.budget_mb: [-1]}", r"budget_mb=-1: .*is -1: must be more than 0"),
    ("{methods.9.draws: [1]}", r"methods.9.draws: .*'9'"),
    ("{quantization.sensitivity: [medain]}", "did you mean 'median'"),
    ("{methods.1.allocation: [unifrom]}", "did you mean 'uniform'"),
    ("{methods.1.calibration: [[cosin]]}", "did you mean 'cosine'"),
    ("{name: [a, b]}", "no result depends on it"),
    ("{engine.threads: [1, 2]}", "no result depends on it"),
    (
        f"{{seed: {list(range(77))}, corpus.tuning_clips: {list(range(1, 14))}}}",
        "combinations are 1,001, more than 1,000: remove",
    ),
]


def test_a_matrix_that_cannot_be_run(scenario, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(scenario.model_copy(update={"matrix": {}}).to_yaml())
    for matrix, words in WRONG:
        with pytest.raises(FedsimError, match=words) as error:
            load_scenario(file, [f"matrix={matrix}"])
        assert len(str(error.value).splitlines()) == 1


def test_rows_hold_the_budget_of_their_combination(results):
    _, cells, _ = results
    first, third = (
        {replace(r, budget_bytes=0) for r in cells[i].result.rows if r.method == "fp32"}
        for i in (0, 2)
    )
    assert first == third
    assert {r.budget_bytes for r in cells[0].result.rows} == {int(0.0334 * 2**20)}
    assert {r.budget_bytes for r in cells[2].result.rows} == {int(0.0295 * 2**20)}
