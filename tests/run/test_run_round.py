"""From a run's ledger to its timeline: by hand, and against the ledger's own account."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from fedsim.base.units import MB
from fedsim.errors import FedsimError
from fedsim.fleet.timeline import from_arrow
from fedsim.quant.calibration import search_macs
from fedsim.quant.layers import Layer
from fedsim.results.folder import create_run, read_results
from fedsim.results.ledger import Ledger
from fedsim.results.records import Log, Planned, Release, Workload
from fedsim.run.matrix import run_matrix
from fedsim.run.round import time_round
from fedsim.run.single import resume_run, run_scenario
from fedsim.scenario import load_scenario
from fedsim.scenario.cells import timed_model
from fedsim.scenario.schema import Scenario
from fedsim.study.cost import ModelCost, read_cost

LAYERS = (Layer("a", "linear", (10, 10)), Layer("b", "linear", (20, 10)))
COST = ModelCost(
    layers=LAYERS,
    layer_bytes={4: (50, 100), 8: (100, 200)},
    rest_bytes=30,
    full_bytes=1200,
    proxy_bytes=330,
    proxy_is_model=False,
    peaks={"full": 1200, "streamed": 800, "proxy": 1100},
    clip_macs=(0.0, 0.0),
    second_macs=(1000.0, 2000.0),
    token_macs=(0.0, 0.0),
    batch=2,
)
TOY = {  # a catalogue with one class and round numbers
    "budget_mb": 4,
    "memory_mb": 1,
    "bit_depths": [4, 8],
    "joules_per_gmac": 0,
    "read_mb_s": 1,
    "down_mbit": 8e-6,  # a byte a second
    "up_mbit": 8e-6,
    "latency_s": 0,
    "battery_j": None,
    "joules_per_mb": 0,
    "available": "always",
    "shift_h": 0,
}


def scenario(folder, calibration="minmax", **parts) -> Scenario:
    lines = [f"  {key}: {json.dumps({'value': v, 'assumed': 'x'})}" for key, v in TOY.items()]
    speeds = {"4": 200.0, "8": 100.0, "32": 10.0}
    speed = {k: {"value": v, "assumed": "x"} for k, v in speeds.items()}
    file = folder / "catalogue.yaml"
    file.write_text("\n".join(["toy:", *lines, f"  macs_per_s: {json.dumps(speed)}"]) + "\n")
    fleet = {"catalogue": str(file), "devices": {"toy": {"share": 1, **parts.pop("device", {})}}}
    return Scenario.model_validate(
        {
            "name": "toy",
            "model": {"id": "m"},
            "corpus": {"path": "p", "group_by": "speaker"},
            "fleet": {**fleet, "sensing": parts.pop("sensing", "streamed")},
            "clock": {"plan_s": 7, **parts.pop("clock", {})},
            **{"methods": [{"allocation": "myqasr", "calibration": calibration}], **parts},
        }
    )


def timed(tmp_path, said, *, bits=(8, 4), log=None, failure=None, clients=("ann",)):
    """The lines of a run of which the ledger says this."""
    folder = create_run(tmp_path / "run", said)
    COST.write(folder.cost)
    with Ledger(folder.ledger) as ledger:
        label = timed_model(said)
        if failure is None:
            for client in clients:
                sent = replace(log, planned=[Planned(client, label, bits)])
                ledger.finish_client(client, [], [], None, sent)
        else:
            sent = replace(log, planned=[Planned("ann", label, bits)] * (failure[0] != "plan"))
            ledger.fail_client("ann", *failure, sent)
    run = time_round(folder, said, clients)
    assert from_arrow(pq.read_table(folder.timeline)) == list(run.timelines)
    return run


def log(*extra):
    """4 s of tuning audio in 3 clips, 2 s of test audio; messages of a few bytes."""
    return Log(
        [
            Release("ann", "sense", "down", "measure", 6),
            Release("ann", "sense", "up", "sensitivity", 16),
            Release("ann", "personalize", "down", "candidates", 80),
            Release("ann", "personalize", "down", "model myqasr/minmax", 230),
            Release("ann", "personalize", "up", "file_bytes", 8),
            Release("ann", "evaluate", "up", "errors", 9),
            *extra,
        ],
        [],
        [Workload("ann", "sense", 3, 4.0), Workload("ann", "evaluate", 2, 2.0)],
    )


def test_a_client_by_hand(tmp_path):
    run = timed(tmp_path, scenario(tmp_path), log=log())
    (line,) = run.timelines
    # down: the request and the full model; then candidates, layer a at 8, b at 4 bits, the rest
    assert line.down_bytes == 6 + 1200 + 80 + 100 + 100 + 30
    assert line.download_s == line.down_bytes  # a byte a second
    assert line.up_bytes == line.upload_s == 16 + 8 + 9
    assert line.sense_s == pytest.approx(4 * 3000 / 10)
    assert line.calibrate_s == 0  # the pass that sensed has seen the ranges
    assert line.evaluate_s == pytest.approx(2 * (1000 / 100 + 2000 / 200))
    assert line.plan_s == 7
    assert line.end_s == pytest.approx(
        line.download_s + line.upload_s + line.sense_s + line.evaluate_s + 7
    )
    assert line.outcome == "delivered"
    assert run.server.sent_bytes == line.down_bytes


def test_a_search_costs_what_its_tries_do(tmp_path):
    """Positions of a layer: 4 s of audio at 10 places a second are 40 rows, all kept."""
    (line,) = timed(tmp_path, scenario(tmp_path, "cosine"), log=log()).timelines
    tried = sum(search_macs("cosine", layer, 40) for layer in LAYERS)
    by_hand = 40 * 300 + sum(min(21 * 40 * n * 10, n * 100 + 40 * 10 * (n + 210)) for n in (10, 20))
    assert tried == by_hand
    assert line.calibrate_s == pytest.approx(tried / 10)


def test_who_senses_nothing_passes_its_clips_to_calibrate(tmp_path):
    """And fetches the full model for that; a public calibration needs neither."""
    said = scenario(tmp_path, methods=[{"allocation": "uniform", "calibration": "minmax"}])
    (line,) = timed(tmp_path, said, log=log()).timelines
    assert (line.sense_s, line.calibrate_s) == (0, pytest.approx(4 * 3000 / 10))
    assert line.down_bytes == 6 + 80 + 1200 + 100 + 100 + 30
    (tmp_path / "b").mkdir()
    said = scenario(tmp_path / "b", methods=[{"allocation": "uniform", "calibration": "none"}])
    (line,) = timed(tmp_path / "b", said, log=log()).timelines
    assert (line.sense_s, line.calibrate_s) == (0, 0)
    assert line.down_bytes == 6 + 80 + 100 + 100 + 30


def test_gradients_take_a_pass_of_their_own(tmp_path):
    """Forward once, and twice as much backward."""
    (line,) = timed(tmp_path, scenario(tmp_path, "hessian"), log=log()).timelines
    tried = sum(search_macs("hessian", layer, 40) for layer in LAYERS)
    assert line.calibrate_s == pytest.approx((3 * 4 * 3000 + tried) / 10)


def test_public_calibration_costs_the_device_nothing(tmp_path):
    (line,) = timed(tmp_path, scenario(tmp_path, "none"), log=log()).timelines
    assert line.calibrate_s == 0


def test_a_device_that_streams_reads_the_model_once_a_batch_and_pass(tmp_path):
    """Two batches of three clips; 300 weights of 4 bytes, at 1 MB a second."""
    said = scenario(tmp_path, device={"memory_mb": 1000 / MB})
    (line,) = timed(tmp_path, said, log=log()).timelines
    assert line.sense_s == pytest.approx(4 * 3000 / 10 + 2 * 1200 / MB)
    (tmp_path / "b").mkdir()
    uniform = [{"allocation": "uniform", "calibration": "minmax"}]
    said = scenario(tmp_path / "b", device={"memory_mb": 1000 / MB}, methods=uniform)
    (late,) = timed(tmp_path / "b", said, log=log()).timelines
    assert late.calibrate_s == pytest.approx(line.sense_s)


def test_what_a_device_holds_of_its_proxy_it_does_not_fetch_again(tmp_path, monkeypatch):
    """The proxy is layer a and b at 8 bits and the rest; of its model only b at 4 is new."""
    monkeypatch.setattr(f"{__name__}.COST", replace(COST, proxy_is_model=True))
    said = scenario(tmp_path, device={"memory_mb": 1150 / MB}, sensing="proxy")
    run = timed(tmp_path, said, log=log())
    (line,) = run.timelines
    assert line.down_bytes == 6 + (100 + 200 + 30) + 80 + 100
    assert run.server.full_bytes == line.down_bytes + 100 + 30
    assert run.server.shared_bytes == line.down_bytes


def test_a_device_that_senses_on_a_proxy(tmp_path):
    """It is sent 330 bytes in place of 1,200, and computes at 8 bits."""
    said = scenario(tmp_path, device={"memory_mb": 1150 / MB}, sensing="proxy")
    (line,) = timed(tmp_path, said, log=log()).timelines
    assert line.down_bytes == 6 + 330 + 80 + 100 + 100 + 30
    assert line.sense_s == pytest.approx(4 * 3000 / 100)


def test_clients_that_end_early(tmp_path):
    said = scenario(tmp_path)
    (line,) = timed(tmp_path, said, log=log(), failure=("plan", "no", "failed")).timelines
    assert (line.outcome, line.stopped_at) == ("failed", "plan")
    assert line.calibrate_s == 0
    (tmp_path / "b").mkdir()
    (line,) = timed(
        tmp_path / "b", scenario(tmp_path / "b"), log=log(), failure=("sense", "no", "failed")
    ).timelines
    assert (line.outcome, line.stopped_at) == ("failed", "sense")


@pytest.mark.parametrize(
    ("stage", "outcome", "ended", "stopped"),
    [
        ("personalize", "dropped", "dropped", "personalize"),  # a worker that died
        ("sense", "quarantined", "quarantined", "sense"),  # a reply that did not fit
        ("sense", "declined", "failed", "sense"),
        ("mask", "dropped", "dropped", "sense"),
        ("aggregate", "failed", "failed", "sense"),
        ("evaluate", "dropped", "delivered", "evaluate"),  # it has its model
    ],
)
def test_ends_that_no_declared_fault_explains(tmp_path, stage, outcome, ended, stopped):
    failure = (stage, "no", outcome)
    (line,) = timed(tmp_path, scenario(tmp_path), log=log(), failure=failure).timelines
    assert (line.outcome, line.stopped_at) == (ended, stopped)
    if stage == "evaluate":  # and took as long for it as anybody
        assert line.ready_s == 6 + 1200 + 16 + 1200 + 7 + 80 + 230
    if stage == "personalize":
        assert line.down_bytes == 6 + 1200 + 80 + 230


def test_nobody_knows_how_much_audio_a_silent_client_has(tmp_path):
    """The median of the others stands for it."""
    said = scenario(tmp_path, faults=[{"kind": "drop_after", "share": 1.0, "stage": "sense"}])
    folder = create_run(tmp_path / "run", said)
    COST.write(folder.cost)
    with Ledger(folder.ledger) as ledger:
        known = [Workload(f"c{i}", "sense", 1, s) for i, s in enumerate((2.0, 4.0, 9.0))]
        for i, w in enumerate(known):
            ledger.fail_client(f"c{i}", "sense", "x", "dropped", Log([], [], [w]))
        ledger.fail_client("ann", "sense", "x", "dropped")
    run = time_round(folder, said, ["ann", "c0", "c1", "c2"])
    assert [t.sense_s for t in run.timelines] == pytest.approx([1200, 600, 1200, 2700])
    assert {t.outcome for t in run.timelines} == {"dropped"}


def test_the_model_that_is_timed(tmp_path):
    said = scenario(tmp_path, calibration=["minmax", "cosine"])
    assert timed_model(said) == "myqasr/minmax"
    other = said.model_copy(update={"clock": said.clock.model_copy(update={"model": "x/cosine"})})
    with pytest.raises(FedsimError, match=r"clock.model: no method makes 'x/cosine'.*cosine"):
        timed_model(other)


def test_cost_comes_back_from_its_file(tmp_path):
    COST.write(tmp_path / "cost.json")
    assert read_cost(tmp_path / "cost.json") == COST


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
    said = load_scenario(
        study.file,
        [
            *FLEET,
            f"fleet={{devices: {{watch: {toy}}}, clip_s: 0.1}}",
            f"faults={json.dumps(faults)}",
        ],
    )
    result = run_scenario(said, tmp_path / "run")
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
    said = load_scenario(study.file, [*FLEET, f"fleet={{devices: {{watch: {{share: 1, {fleet}}}"])
    result = run_scenario(said, tmp_path / "run")
    assert result.rows == []
    assert all("even layer by layer, with activations of" in f.reason for f in result.failures)
    lines = from_arrow(pq.read_table(result.folder.timeline))
    assert {(t.outcome, t.stopped_at) for t in lines} == {("failed", "sense")}
    # They said so at once: no model came, and nothing was computed.
    assert sum(t.down_bytes for t in lines) < 1000
    assert all(t.sense_s == t.joules == 0 for t in lines)


def test_engines_agree_on_the_fleet(study, tmp_path):
    said = load_scenario(study.file, [*FLEET, "fleet={devices: {watch: 0.5, mid_phone: 0.5}}"])
    ours = run_scenario(said, tmp_path / "inprocess").folder
    ray = said.model_copy(update={"engine": said.engine.model_copy(update={"kind": "ray"})})
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
