"""The same study on other engines, to the byte, and from the command line as a user runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import paper
import pytest
import torch
import toys

import fedsim
from fedsim.cli import main
from fedsim.engine import EngineSettings, kept_running
from fedsim.results.ledger import Ledger
from fedsim.runner.engine_choice import choose_engine
from fedsim.runner.single import run_scenario
from fedsim.scenario import find_scenario, load_scenario


@pytest.fixture(scope="module")
def ray():
    """One Ray for all runs of this module: the engine uses one that is running."""
    with kept_running("ray", 3, EngineSettings(workers=3)):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_ray_gives_the_same_results_to_the_byte(study, ray, tmp_path, workers):
    scenario = load_scenario(study.file, ["engine.kind=ray", f"engine.workers={workers}"])
    torch.set_num_threads(2)  # of whoever calls: they must not show in the last bit of a weight
    result = run_scenario(scenario, tmp_path / "run")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert result.failures == []
    assert result.folder.results.read_bytes() == study.result.folder.results.read_bytes()
    names = {p.name for p in study.result.folder.models.iterdir()}
    assert {p.name for p in result.folder.models.iterdir()} == names
    for name in names:
        expected = (study.result.folder.models / name).read_bytes()
        assert (result.folder.models / name).read_bytes() == expected
    assert not (result.folder.path / "bank").exists()
    with Ledger(result.folder.ledger) as ledger, Ledger(study.result.folder.ledger) as expected:
        assert sorted(map(repr, ledger.all_releases())) == sorted(
            map(repr, expected.all_releases())
        )


@pytest.mark.slow
def test_both_engines_agree_about_twenty_clients(ray, tmp_path, model_folder):
    speakers = [f"speaker {i}" for i in range(20)]
    toys.write_corpus(tmp_path / "clips", speakers, each=2)
    file = toys.write_scenario(
        tmp_path / "twenty.yaml",
        model={"id": str(model_folder("ctc-group")), "batch_size": 4},
        corpus={"path": "clips", "group_by": "speaker", "tuning_clips": 1, "test_clips": 1},
        clients={"budget_mb": [0.0334, 0.0302, 0.0311]},
        quantization=paper.QUANTIZATION,
        methods=["fp32", {"allocation": "myqasr", "tuned_on": ["own", "other"]}],
    )
    made = set()
    for kind in ("inprocess", "ray"):
        scenario = load_scenario(file, [f"engine.kind={kind}", "engine.workers=2"])
        result = run_scenario(scenario, tmp_path / kind)
        assert len(result.rows) == 3 * 20
        made.add(result.folder.results.read_bytes())
    assert len(made) == 1


@pytest.mark.slow
def test_ray_reports_the_same_failures(study, ray, tmp_path):
    corpus = shutil.copytree(study.scenario.corpus.path, tmp_path / "clips")
    for path in (corpus / "bob").iterdir():
        path.write_bytes(b"no audio")
    (corpus / "dee" / "0.wav").unlink()
    budgets = {**dict.fromkeys(toys.SPEAKERS, 0.03), "cyd": 0.01}
    methods = "methods=[fp32, uniform, {allocation: myqasr, tuned_on: [own, other]}]"
    overrides = [f"corpus.path={corpus}", f"clients.budget_mb={budgets}", methods]
    overrides += ["corpus.test_clips=3", "save_models=false", "engine.workers=2"]
    inprocess, other = (
        run_scenario(
            load_scenario(study.file, [*overrides, f"engine.kind={kind}"]), tmp_path / kind
        )
        for kind in ("inprocess", "ray")
    )
    assert other.failures == inprocess.failures
    assert other.rows == inprocess.rows
    assert {f.client: f.stage for f in other.failures} == {
        "bob": "sense",  # no clip can be read
        "cyd": "plan",  # its budget is too small
        "dee": other.failures[-1].stage,  # a clip is missing, for tuning or for testing
        "ann": "plan",  # its other is bob
    }
    assert {r.client for r in other.rows} == {"ann", "eve"}


def test_auto_is_ray_where_several_processes_save_more_time_than_they_take_to_start():
    def chosen(clients: int, *overrides: str) -> str:
        settings = ["engine.workers=2", *overrides]
        return choose_engine([(load_scenario(find_scenario("quickstart"), settings), clients)])

    assert chosen(24) == "ray"
    assert chosen(2) == "inprocess"
    assert chosen(24, "engine.workers=1") == "inprocess"
    assert chosen(2, "engine.address=auto") == "ray"
    assert chosen(24, "engine.kind=inprocess") == "inprocess"
    few = load_scenario(find_scenario("quickstart"), ["engine.workers=2"])
    assert choose_engine([(few, 2)] * 10) == "ray"  # a matrix starts Ray once


def test_nothing_heavy_is_imported_before_an_engine_starts(study):
    """The workers of Ray import torch while this process does, not after it."""
    code = (
        "import sys, fedsim.runner.matrix, fedsim.runner.show;"
        "from fedsim.runner.single import client_keys;"
        "from fedsim.scenario import load_scenario;"
        f"client_keys(load_scenario({str(study.file)!r}));"
        "print([m for m in ('torch', 'transformers', 'ray', 'flwr') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def fedsim_command(*words: object, cwd: Path) -> subprocess.CompletedProcess:
    """Run the command as a process of its own."""
    source = [str(Path(fedsim.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", "fedsim", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=180,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, source)), "COLUMNS": "200"},
        check=False,
    )


@pytest.mark.slow
def test_the_command_runs_a_scenario_with_two_workers(study, tmp_path):
    """The whole of `fedsim run`, with an engine of its own: table, exit code, files."""
    done = fedsim_command(
        *("run", study.file, "--engine", "ray", "--workers", 2, "--out", "here"), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    made = tmp_path / "here"
    lines = done.stdout.splitlines()
    assert lines[-2:] == [f"run folder: {made}", f"report: {made / 'report.html'}"]
    assert (made / "results.parquet").read_bytes() == study.result.folder.results.read_bytes()
    assert not (made / "bank").exists()
    assert "\x1b" not in done.stdout
    heading = "method tuned on model MB mean bits WER % clients"
    assert " ".join(lines[0].split()) == heading
    first = {tuple(line.split()[:2]): line.split() for line in reversed(lines) if line}
    assert {("fp32", "-"), ("myqasr/cosine", "own"), ("myqasr/cosine", "other")} <= set(first)
    rows = [r for r in study.result.rows if r.method == "fp32"]
    wer = 100 * sum(r.errors for r in rows) / sum(r.words for r in rows)
    assert first["fp32", "-"] == ["fp32", "-", "0.1", "32.00", f"{wer:.1f}", "5"]


def test_a_mistake_is_one_line_and_no_traceback(study, tmp_path):
    words = ("run", study.file, "--set", "model.id=./nowhere", "--out", "here")
    done = fedsim_command(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    sentence = f"error: there is no model folder {tmp_path}/nowhere; check model.id\n"
    assert done.stderr == sentence


def test_clients_that_fail_are_told_below_the_table(study, tmp_path, capsys, monkeypatch):
    """One budget too small: its sentence, the others' table, and exit code 0."""
    monkeypatch.chdir(tmp_path)
    budgets = {**dict.fromkeys(toys.SPEAKERS, 0.04), "cyd": 0.01}
    overrides = (f"clients.budget_mb={budgets}", "methods=[fp32, uniform]", "save_models=false")
    assert main(["run", str(study.file), "--set", *overrides, "--out", "here"]) == 0
    out, err = capsys.readouterr()
    assert "1 client failed\n  cyd (plan): client 'cyd': a budget of 10,485 bytes" in out
    assert err == ""
