"""What an estimate reports: against the run itself, without its clock."""

from __future__ import annotations

from pathlib import Path

import pytest
import toys
from fedsim_clients.runtime import open_runtime

from fedsim.base.accelerators import cuda_cards
from fedsim.cli import main
from fedsim.errors import FedsimError
from fedsim.protocol.run_config import RunConfig
from fedsim.runner.estimate import estimate
from fedsim.runner.matrix import run_matrix
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario
from fedsim.scenario.cells import forward_passes

QUICK = ["engine.kind=inprocess", "engine.device=cpu", "save_models=false", "corpus.tuning_clips=2"]


@pytest.fixture
def chosen(study):
    return lambda *overrides: load_scenario(study.file, [*QUICK, *overrides])


@pytest.mark.parametrize(
    "methods",
    [
        "[fp32, {allocation: myqasr, calibration: [minmax, cosine]}]",
        "[{allocation: myqasr, calibration: minmax, tuned_on: [own, other, each]}]",
    ],
)
def test_passes_are_those_of_a_run(chosen, tmp_path, methods):
    """Every clip that the model is given, except where two models happen to be equal."""
    scenario = chosen(f"methods={methods}", "corpus.test_clips=2")
    open_runtime.cache_clear()
    # The very runtime of the run: there is one per process and run config.
    runtime = open_runtime(RunConfig(scenario.model_dump_json(), tmp_path / "run"))
    clips = []
    handle = runtime.model.module.register_forward_hook(
        lambda module, args, kwargs, out: clips.append(len(next(iter(kwargs.values())))),
        with_kwargs=True,
    )
    result = run_scenario(scenario, tmp_path / "run")
    handle.remove()
    assert result.failures == []
    tested = {(r.client, r.plan_sha256, r.calibration, r.tuned_on) for r in result.rows}
    assert len(tested) == len(result.rows)
    assert sum(clips) == forward_passes(scenario, len(toys.SPEAKERS))


def test_a_rehearsal_of_few_is_the_run(chosen):
    found = estimate(chosen("methods=[fp32, {allocation: myqasr, calibration: minmax}]"))
    assert (found.combinations, found.clients, found.rehearsed) == (1, 5, 5)
    assert found.workers == 1
    assert found.worker_bytes is None
    assert found.seconds > 0
    assert found.disk_bytes > 10_000
    assert found.bank_bytes > 0


def test_a_rehearsal_is_broken_off_and_leaves_nothing(chosen, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    methods = "methods=[{allocation: myqasr, calibration: minmax}]"
    matrix = "matrix={clients.budget_mb: [0.03, 0.04]}"
    found = estimate(chosen(methods, matrix), watched_s=0.0)
    assert found.rehearsed < found.clients == 5
    assert found.combinations == 2
    assert list(tmp_path.iterdir()) == []


def test_what_combinations_share_is_counted_once(chosen, tmp_path):
    """As a run of the matrix computes: passes of the model, and the ledgers that it leaves."""
    methods = "methods=[fp32, uniform, {allocation: myqasr, calibration: minmax}]"
    matrix = "matrix={clients.budget_mb: [0.03, 0.04], quantization.sensitivity: [median, mean]}"
    scenario = chosen(methods, matrix, "corpus.test_clips=2")
    found = estimate(scenario)
    # 2 tuning clips in each run, 2 test clips per model: full precision in one combination alone,
    # uniform in one of each budget, myqasr in all four.
    assert found.passes == 5 * (4 * 2 + 2 * (1 + 2 + 4))
    assert found.combinations == 4
    cells = run_matrix(scenario, tmp_path / "run")
    disk = sum(
        f.stat().st_size for c in cells for f in c.result.folder.path.rglob("*") if f.is_file()
    )
    assert 1 / 1.5 < found.disk_bytes / disk < 1.5


def test_clients_of_a_rehearsal_are_spread_over_all(chosen, engine):
    """Where stages wait for each other it needs three clients for one worker."""
    methods = "methods=[{allocation: myqasr, calibration: minmax, tuned_on: [own, other]}]"
    found = estimate(chosen(methods, "engine.kind=own", "engine.workers=1"))
    assert [clients for clients, _ in engine.opened] == [["ann", "bob", "dee"]]
    assert found.rehearsed == 3


def test_what_stops_a_run_stops_a_rehearsal(chosen):
    with pytest.raises(FedsimError, match="'zoe'"):
        estimate(chosen("methods=[{allocation: myqasr, tuned_on: zoe}]"))


def test_clients_that_fail_in_the_rehearsal_are_an_error(chosen, capsys, tmp_path):
    """What is printed would be the time of a run that gives nothing."""
    broken = "clients.budget_mb=0.001"  # no model fits
    sentence = r"3 of 3 clients failed in the rehearsal, the first, '\w+', at plan: .*budget"
    with pytest.raises(FedsimError, match=sentence):
        estimate(chosen(broken))
    declared = "faults=[{kind: drop_before, share: 0.3, stage: sense}]"
    assert estimate(chosen(declared)).seconds > 0  # failures that the scenario asks for


def test_on_the_command_line(study, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    methods = "methods=[{allocation: myqasr, calibration: minmax, tuned_on: [own, other]}]"
    assert main(["estimate", str(study.file), "--set", *QUICK, methods]) == 0
    bound, lines = (part.splitlines() for part in capsys.readouterr().out.split("\n\n")[:2])
    assert bound[1].split() == ["worker", "server"]
    assert bound[-1].startswith("on the host")
    words = [line.split()[0] for line in lines]
    assert words == ["clients", "forward", "time", "memory", "disk"]
    assert lines[0].endswith(" 5")
    assert not Path("runs").exists()


@pytest.mark.skipif(bool(cuda_cards()), reason="there is a GPU")
def test_memory_of_a_gpu_that_is_not_there(study, capsys):
    """What it would hold is said; then, as a run would, the rehearsal wants it."""
    assert main(["estimate", str(study.file), "--set", *QUICK[:1], "engine.device=cuda"]) != 0
    printed = capsys.readouterr()
    lines = printed.out.strip().splitlines()
    assert lines[1].split() == [
        "worker,",
        "host",
        "worker,",
        "GPU",
        "server,",
        "host",
        "server,",
        "GPU",
    ]
    assert "none is here to compare with" in lines[-1]
    assert "engine.device is 'cuda'" in printed.err
