"""Runs of a fleet: devices limit the models, and the timeline agrees with ledger and table."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from fedsim.base.units import MB
from fedsim.fleet.timeline import from_arrow
from fedsim.results.folder import read_results
from fedsim.results.ledger import Ledger
from fedsim.runner.matrix import run_matrix
from fedsim.runner.single import resume_run, run_scenario
from fedsim.scenario import load_scenario
from fedsim.study.cost import read_cost

FLEET = [
    "engine.kind=inprocess",
    "save_models=false",
    "corpus.test_clips=2",
    "clients={}",
    "methods=[fp32, {allocation: myqasr, calibration: minmax}]",
]


def test_a_run_of_a_fleet(study, tmp_path):
    """Budgets, bit depths and memory of the devices; the timeline agrees with ledger and table."""
    # 0.020 MB of the largest layer and the rest, 0.026 MB of activations for a tenth of a second.
    toy = "{share: 1, budget_mb: [0.024, 0.04], bit_depths: [4, 8], memory_mb: 0.05}"
    faults = [{"kind": k, "share": 0.12} for k in ("drop_after", "crash", "corrupt", "delay")]
    faults[-1]["seconds"] = [1, 2]
    chosen = load_scenario(
        study.file,
        [
            *FLEET,
            f"fleet={{devices: {{watch: {toy}}}, clip_s: 0.1}}",
            f"faults={json.dumps(faults)}",
        ],
    )
    result = run_scenario(chosen, tmp_path / "run")
    lines = {t.client: t for t in from_arrow(pq.read_table(result.folder.timeline))}
    assert set(lines) == {f.client for f in result.failures} | {r.client for r in result.rows}
    for row in result.rows:
        assert lines[row.client].outcome == "delivered"
        assert row.budget_bytes <= 0.04 * MB
    with Ledger(result.folder.ledger) as ledger:
        for plan in ledger.plans():
            assert set(plan.bits) <= {4, 8}
        retries = Counter(e.client for e in ledger.events() if e.event in ("no answer", "refused"))
    for failure in result.failures:
        assert lines[failure.client].outcome == failure.outcome
    for client, line in lines.items():
        assert line.retries == retries[client]
    resume_run(tmp_path / "run")
    again = {t.client: t for t in from_arrow(pq.read_table(result.folder.timeline))}
    assert again == lines


@pytest.mark.parametrize("fleet", ["memory_mb: 0.001}}", "memory_mb: 0.05}}, clip_s: 0.2"])
def test_a_device_without_room_even_for_a_layer(study, tmp_path, fleet):
    """No room for the layer, or not for what it answers to two tenths of a second."""
    chosen = load_scenario(study.file, [*FLEET, f"fleet={{devices: {{watch: {{share: 1, {fleet}}}"])
    result = run_scenario(chosen, tmp_path / "run")
    assert result.rows == []
    assert all("even layer by layer, with activations of" in f.reason for f in result.failures)
    lines = from_arrow(pq.read_table(result.folder.timeline))
    assert {(t.outcome, t.stopped_at) for t in lines} == {("failed", "sense")}
    # They chosen so at once: no model came, and nothing was computed.
    assert sum(t.down_bytes for t in lines) < 1000
    assert all(t.sense_s == t.joules == 0 for t in lines)


@pytest.mark.slow
def test_engines_agree_on_the_fleet(study, tmp_path):
    chosen = load_scenario(study.file, [*FLEET, "fleet={devices: {watch: 0.5, mid_phone: 0.5}}"])
    ours = run_scenario(chosen, tmp_path / "inprocess").folder
    ray = chosen.model_copy(update={"engine": chosen.engine.model_copy(update={"kind": "ray"})})
    other = run_scenario(ray, tmp_path / "ray").folder
    assert other.timeline.read_bytes() == ours.timeline.read_bytes()
    assert read_results(other.results) == read_results(ours.results)
    assert replace(read_cost(other.cost)) == read_cost(ours.cost)


def test_a_fleet_gives_nothing_to_a_study_without_one(study, tmp_path):
    """Beside it lies the same scenario on devices that execute 8 bits alone."""
    plain = [*FLEET[:3], "clients.budget_mb=0.04", FLEET[4], "matrix={seed: [3]}"]
    earbuds = "fleet={devices: {earbuds: 1}, sensing: proxy}"
    run_matrix(load_scenario(study.file, [*plain, earbuds]), tmp_path / "a/fleet")
    (beside,) = run_matrix(load_scenario(study.file, plain), tmp_path / "a/plain")
    (alone,) = run_matrix(load_scenario(study.file, plain), tmp_path / "b/plain")
    assert beside.result.rows == alone.result.rows


def test_tables_of_a_fleet_in_a_matrix_lie_beside_the_scenario(study, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/few.csv").write_text("device\nwatch\n")
    file = tmp_path / "sub/s.yaml"
    file.write_text(study.scenario.to_yaml())
    monkeypatch.chdir(tmp_path)
    for line in ("fleet.trace: [few.csv]", "fleet: [{trace: few.csv}, {devices: {watch: 1}}]"):
        file.write_text(study.scenario.to_yaml())
        base = load_scenario(file, ["fleet={trace: sub/few.csv}"])
        text = base.to_yaml().replace("matrix: {}\n", "")
        file.write_text(f"{text}\nmatrix: {{{line}}}\n")
        (first, *_) = load_scenario(file).matrix.values()
        found = first[0]["trace"] if isinstance(first[0], dict) else first[0]
        assert found == str(tmp_path / "sub/few.csv")
