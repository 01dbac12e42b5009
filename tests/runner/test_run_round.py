"""From a run's ledger to its timeline: by hand, and against the ledger."""

from __future__ import annotations

import json
from dataclasses import replace

import paper
import pyarrow.parquet as pq
import pytest

from fedsim.base.units import MB
from fedsim.errors import FedsimError
from fedsim.fleet.timeline import from_arrow
from fedsim.quant.calibrators import CALIBRATORS
from fedsim.quant.layers import Layer
from fedsim.results.folder import create_run
from fedsim.results.ledger import Ledger
from fedsim.results.records import Log, Planned, Release, Workload
from fedsim.runner.round import time_round
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
    "down_mbit": 8e-6,  # one byte per second
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
            "quantization": paper.QUANTIZATION,
            **{"methods": [{"allocation": "myqasr", "calibration": calibration}], **parts},
        }
    )


def timed(tmp_path, chosen, *, bits=(8, 4), log=None, failure=None, clients=("ann",), cost=COST):
    """The timed round of a run with this ledger."""
    folder = create_run(tmp_path / "run", chosen)
    cost.write(folder.cost)
    with Ledger(folder.ledger) as ledger:
        label = timed_model(chosen)
        if failure is None:
            for client in clients:
                sent = replace(log, planned=[Planned(client, label, bits)])
                ledger.finish_client(client, [], [], None, sent)
        else:
            sent = replace(log, planned=[Planned("ann", label, bits)] * (failure[0] != "plan"))
            ledger.fail_client("ann", *failure, sent)
    run = time_round(folder, chosen, clients)
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
    assert line.download_s == line.down_bytes  # one byte per second
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
    """Positions of a layer: 4 s of audio at 10 places per second are 40 rows, all kept."""
    (line,) = timed(tmp_path, scenario(tmp_path, "cosine"), log=log()).timelines
    tried = sum(CALIBRATORS["cosine"].search_macs(layer, 40) for layer in LAYERS)
    by_hand = 40 * 300 + sum(min(21 * 40 * n * 10, n * 100 + 40 * 10 * (n + 210)) for n in (10, 20))
    assert tried == by_hand
    assert line.calibrate_s == pytest.approx(tried / 10)


def test_who_senses_nothing_passes_its_clips_to_calibrate(tmp_path):
    """And fetches the full model for that; a public calibration needs neither."""
    chosen = scenario(tmp_path, methods=[{"allocation": "uniform", "calibration": "minmax"}])
    (line,) = timed(tmp_path, chosen, log=log()).timelines
    assert (line.sense_s, line.calibrate_s) == (0, pytest.approx(4 * 3000 / 10))
    assert line.down_bytes == 6 + 80 + 1200 + 100 + 100 + 30
    (tmp_path / "b").mkdir()
    chosen = scenario(tmp_path / "b", methods=[{"allocation": "uniform", "calibration": "none"}])
    (line,) = timed(tmp_path / "b", chosen, log=log()).timelines
    assert (line.sense_s, line.calibrate_s) == (0, 0)
    assert line.down_bytes == 6 + 80 + 100 + 100 + 30


@pytest.mark.parametrize("moments", ["own", "blend"])
def test_a_device_that_rounds_its_model(tmp_path, moments):
    """It fetches the full model, and public clips for a blend, once; no packed layer. It records
    second moments of 40 rows of 10 inputs per layer in the pass that senses, then rounds."""
    method = {"allocation": "myqasr", "calibration": "minmax"}
    method |= {"rounding": "compensated", "moments": moments}
    cost = replace(COST, moments=moments)
    fetched = [Release("ann", "personalize", "down", "full-precision model", 1200)]
    if moments == "blend":  # 5 clips of 6 s together
        cost = replace(cost, public_bytes=70, public_clips=5, public_seconds=6.0)
        fetched.append(Release("ann", "personalize", "down", "public clips", 70))
    chosen = scenario(tmp_path, methods=[method])
    (line,) = timed(tmp_path, chosen, log=log(*fetched), cost=cost).timelines
    assert line.down_bytes == 6 + 80 + sum(release.bytes for release in fetched)
    own = 2 * 40 * 10**2 / 2
    codes = (10 + 20) * 10**2 / 2 + 2 * 10**3 / 6
    public = 6 * 3000 + 2 * 60 * 10**2 / 2 if moments == "blend" else 0
    assert line.sense_s == pytest.approx(4 * 3000 / 10)
    assert line.calibrate_s == pytest.approx((own + codes + public) / 10)


def test_gradients_take_a_pass_of_their_own(tmp_path):
    """Forward once, and twice as much backward."""
    (line,) = timed(tmp_path, scenario(tmp_path, "hessian"), log=log()).timelines
    tried = sum(CALIBRATORS["hessian"].search_macs(layer, 40) for layer in LAYERS)
    assert line.calibrate_s == pytest.approx((3 * 4 * 3000 + tried) / 10)


def test_public_calibration_costs_the_device_nothing(tmp_path):
    (line,) = timed(tmp_path, scenario(tmp_path, "none"), log=log()).timelines
    assert line.calibrate_s == 0


def test_a_device_that_streams_reads_the_model_once_per_batch_and_pass(tmp_path):
    """Two batches of three clips; 300 weights of 4 bytes, at 1 MB a second."""
    chosen = scenario(tmp_path, device={"memory_mb": 1000 / MB})
    (line,) = timed(tmp_path, chosen, log=log()).timelines
    assert line.sense_s == pytest.approx(4 * 3000 / 10 + 2 * 1200 / MB)
    (tmp_path / "b").mkdir()
    uniform = [{"allocation": "uniform", "calibration": "minmax"}]
    chosen = scenario(tmp_path / "b", device={"memory_mb": 1000 / MB}, methods=uniform)
    (late,) = timed(tmp_path / "b", chosen, log=log()).timelines
    assert late.calibrate_s == pytest.approx(line.sense_s)


def test_what_a_device_holds_of_its_proxy_it_does_not_fetch_again(tmp_path):
    """The proxy is layer a and b at 8 bits and the rest; of its model only b at 4 is new."""
    chosen = scenario(tmp_path, device={"memory_mb": 1150 / MB}, sensing="proxy")
    run = timed(tmp_path, chosen, log=log(), cost=replace(COST, proxy_is_model=True))
    (line,) = run.timelines
    assert line.down_bytes == 6 + (100 + 200 + 30) + 80 + 100
    assert run.server.full_bytes == line.down_bytes + 100 + 30
    assert run.server.shared_bytes == line.down_bytes


def test_a_device_that_senses_on_a_proxy(tmp_path):
    """It is sent 330 bytes in place of 1,200, and computes at 8 bits."""
    chosen = scenario(tmp_path, device={"memory_mb": 1150 / MB}, sensing="proxy")
    (line,) = timed(tmp_path, chosen, log=log()).timelines
    assert line.down_bytes == 6 + 330 + 80 + 100 + 100 + 30
    assert line.sense_s == pytest.approx(4 * 3000 / 100)


def test_clients_that_end_early(tmp_path):
    chosen = scenario(tmp_path)
    (line,) = timed(tmp_path, chosen, log=log(), failure=("plan", "no", "failed")).timelines
    assert (line.outcome, line.stopped_at) == ("failed", "plan")
    assert line.calibrate_s == 0
    (tmp_path / "b").mkdir()
    (line,) = timed(
        tmp_path / "b", scenario(tmp_path / "b"), log=log(), failure=("sense", "no", "failed")
    ).timelines
    assert (line.outcome, line.stopped_at) == ("failed", "sense")


ENDS = [
    # (stage, outcome in the ledger, outcome on the timeline, stage there)
    ("personalize", "dropped", "dropped", "personalize"),  # a worker that died
    ("sense", "quarantined", "quarantined", "sense"),  # a reply that did not fit
    ("sense", "declined", "failed", "sense"),
    ("mask", "dropped", "dropped", "sense"),
    ("aggregate", "failed", "failed", "sense"),
    ("evaluate", "dropped", "delivered", "evaluate"),  # it has its model
]


def test_ends_that_no_declared_fault_explains(tmp_path):
    for number, (stage, outcome, ended, stopped) in enumerate(ENDS):
        place = tmp_path / str(number)
        place.mkdir()
        failure = (stage, "no", outcome)
        (line,) = timed(place, scenario(place), log=log(), failure=failure).timelines
        assert (line.outcome, line.stopped_at) == (ended, stopped)
        if stage == "evaluate":  # and took as long for it as anybody
            assert line.ready_s == 6 + 1200 + 16 + 1200 + 7 + 80 + 230
        if stage == "personalize":
            assert line.down_bytes == 6 + 1200 + 80 + 230


def test_nobody_knows_how_much_audio_a_silent_client_has(tmp_path):
    """The median of the others stands for it."""
    chosen = scenario(tmp_path, faults=[{"kind": "drop_after", "share": 1.0, "stage": "sense"}])
    folder = create_run(tmp_path / "run", chosen)
    COST.write(folder.cost)
    with Ledger(folder.ledger) as ledger:
        known = [Workload(f"c{i}", "sense", 1, s) for i, s in enumerate((2.0, 4.0, 9.0))]
        for i, w in enumerate(known):
            ledger.fail_client(f"c{i}", "sense", "x", "dropped", Log([], [], [w]))
        ledger.fail_client("ann", "sense", "x", "dropped")
    run = time_round(folder, chosen, ["ann", "c0", "c1", "c2"])
    assert [t.sense_s for t in run.timelines] == pytest.approx([1200, 600, 1200, 2700])
    assert {t.outcome for t in run.timelines} == {"dropped"}


def test_the_model_that_is_timed(tmp_path):
    chosen = scenario(tmp_path, calibration=["minmax", "cosine"])
    assert timed_model(chosen) == "myqasr/minmax"
    other = chosen.model_copy(
        update={"clock": chosen.clock.model_copy(update={"model": "x/cosine"})}
    )
    with pytest.raises(FedsimError, match=r"clock.model.*'x/cosine'.*cosine"):
        timed_model(other)


def test_cost_comes_back_from_its_file(tmp_path):
    COST.write(tmp_path / "cost.json")
    assert read_cost(tmp_path / "cost.json") == COST
