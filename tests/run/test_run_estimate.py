"""What a rehearsal tells: against the run itself, without its clock."""

from __future__ import annotations

from pathlib import Path

import pytest
import toys
from fedsim_clients.runtime import Runtime, open_runtime

from fedsim.cli import main
from fedsim.errors import FedsimError
from fedsim.run.estimate import estimate
from fedsim.run.matrix import run_matrix
from fedsim.run.single import estimate as estimating
from fedsim.run.single import run_scenario
from fedsim.scenario import load_scenario

QUICK = ["engine.kind=inprocess", "save_models=false", "corpus.tuning_clips=2"]


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
def test_passes_are_those_of_a_run(chosen, tmp_path, methods, monkeypatch):
    """Every clip that the model is given, but where two models happen to be equal."""
    scenario = chosen(f"methods={methods}", "corpus.test_clips=2")
    seen = []
    opened = open_runtime.__wrapped__

    def watched(assignment) -> Runtime:
        runtime = opened(assignment)
        runtime.model.module.register_forward_hook(
            lambda module, args, kwargs, out: seen.append(len(next(iter(kwargs.values())))),
            with_kwargs=True,
        )
        return runtime

    benches = {}
    monkeypatch.setattr(
        "fedsim_clients.identity.open_runtime",
        lambda assignment: (
            benches.setdefault(assignment, watched(assignment))
            if assignment not in benches
            else benches[assignment]
        ),
    )
    result = run_scenario(scenario, tmp_path / "run")
    assert result.failures == []
    expected = estimating._passes(scenario, len(toys.SPEAKERS))
    repeated = {(r.client, r.plan_sha256, r.calibration, r.tuned_on) for r in result.rows}
    assert len(repeated) == len(result.rows)
    assert sum(seen) == expected


def test_a_rehearsal_of_few_is_the_run(chosen):
    found = estimate(chosen("methods=[fp32, {allocation: myqasr, calibration: minmax}]"))
    assert (found.combinations, found.clients, found.rehearsed) == (1, 5, 5)
    assert found.workers == 1
    assert found.worker_bytes is None
    assert found.seconds > 0
    assert found.disk_bytes > 10_000
    assert found.bank_bytes > 0


def test_a_rehearsal_is_broken_off_and_leaves_nothing(chosen, monkeypatch, tmp_path):
    monkeypatch.setattr(estimating, "WATCHED_S", 0.0)
    monkeypatch.chdir(tmp_path)
    methods = "methods=[{allocation: myqasr, calibration: minmax}]"
    found = estimate(chosen(methods, "matrix={clients.budget_mb: [0.03, 0.04]}"))
    assert found.rehearsed < found.clients == 5
    assert found.combinations == 2
    assert list(tmp_path.iterdir()) == []


def test_what_combinations_share_is_told_once(chosen, tmp_path):
    """As a run of the matrix computes: passes of the model, and the ledgers that it leaves."""
    methods = "methods=[fp32, uniform, {allocation: myqasr, calibration: minmax}]"
    matrix = "matrix={clients.budget_mb: [0.03, 0.04], quantization.sensitivity: [median, mean]}"
    scenario = chosen(methods, matrix, "corpus.test_clips=2")
    found = estimate(scenario)
    # 2 tuning clips in each run, 2 test clips a model: full precision in one combination alone,
    # uniform in one of each budget, myqasr in all four.
    assert found.passes == 5 * (4 * 2 + 2 * (1 + 2 + 4))
    assert found.combinations == 4
    cells = run_matrix(scenario, tmp_path / "run")
    disk = sum(
        f.stat().st_size for c in cells for f in c.result.folder.path.rglob("*") if f.is_file()
    )
    assert 1 / 1.5 < found.disk_bytes / disk < 1.5


def test_clients_are_spread_over_all():
    assert estimating._spread([str(i) for i in range(10)], 3) == ["0", "3", "6"]
    assert estimating._spread(["a", "b"], 200) == ["a", "b"]


def test_what_stops_a_run_stops_a_rehearsal(chosen):
    with pytest.raises(FedsimError, match="'zoe' is no client"):
        estimate(chosen("methods=[{allocation: myqasr, tuned_on: zoe}]"))


def test_on_the_command_line(study, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = ["methods=[{allocation: myqasr, calibration: minmax, tuned_on: [own, other]}]"]
    assert main(["plan", str(study.file), "--set", *QUICK, *said]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = [line.split()[0] for line in lines[:5]]
    assert words == ["clients", "forward", "time", "memory", "disk"]
    assert lines[0].endswith(" 5")
    assert Path("runs").exists() is False
