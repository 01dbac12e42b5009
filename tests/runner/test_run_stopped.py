"""Runs that are stopped or cannot write: what is done is kept, no process is left, one sentence."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest
from processes import foreground, marked

from fedsim.cli import main
from fedsim.results.ledger import Ledger
from fedsim.runner.single import resume_run, run_scenario
from fedsim.scenario import load_scenario

QUICK = ["engine.kind=inprocess", "save_models=false"]
METHODS = "methods=[fp32, {allocation: myqasr, calibration: [minmax, cosine]}]"


@pytest.fixture
def scenario(study):
    return load_scenario(study.file, [*QUICK, METHODS])


@pytest.fixture
def many(study, tmp_path) -> Path:
    """A scenario of 300 clients: enough to be stopped in the middle."""
    settings = study.scenario.model_dump()
    voices = {"kind": "voices", "path": None, "population": {"speakers": 300}, "tuning_clips": 1}
    settings["corpus"] = {**voices, "group_by": "speaker", "test_clips": 1}
    settings["clients"] = {"budget_mb": 0.04}
    settings["methods"] = [{"allocation": "myqasr", "calibration": "minmax"}]
    file = tmp_path / "many.yaml"
    file.write_text(type(study.scenario).model_validate(settings).to_yaml(), encoding="utf-8")
    return file


PROGRAM = """
import sys
from fedsim.cli import main
print("ready", flush=True)
sys.exit(main())
"""


@contextmanager
def running(file: Path, out: Path, engine: str) -> Iterator[Popen[str]]:
    """Run a scenario in a process group of its own; it has just begun."""
    words = [sys.executable, "-c", PROGRAM, "run", str(file), "--engine", engine]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    with foreground(
        [*words, "--out", str(out)], str(out), PYTHONPATH=os.pathsep.join(filter(None, paths))
    ) as child:
        assert child.stdout.readline() == "ready\n"
        yield child


def ctrl_c(child: Popen[str]) -> None:
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to all of its processes


def interrupt(child: Popen[str]) -> None:
    child.send_signal(signal.SIGINT)


def terminate(child: Popen[str]) -> None:
    child.send_signal(signal.SIGTERM)


def stop(child: Popen[str], how: Callable[[Popen[str]], None], out: Path) -> tuple[str, float]:
    """Stop a run, and see that nothing of it is left; return its errors and the seconds it took."""
    began = time.monotonic()
    how(child)
    _, errors = child.communicate(timeout=30)
    seconds = time.monotonic() - began
    assert marked(str(out), seconds=0.0) == {}
    assert child.returncode == 130, errors
    assert "Traceback" not in errors
    return errors, seconds


def at_work(child: Popen[str], out: Path) -> None:
    """Wait until some clients have finished."""
    deadline = time.monotonic() + 60
    while _finished(out) < 3:
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("engine", "how"),
    [
        ("inprocess", terminate),
        pytest.param("ray", terminate, marks=pytest.mark.slow),
        pytest.param("ray", ctrl_c, marks=pytest.mark.slow),
        pytest.param("inprocess", ctrl_c, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_stopped_keeps_what_is_done(many, tmp_path, engine, how):
    out = tmp_path / "run"
    with running(many, out, engine) as child:
        at_work(child, out)
        errors, _ = stop(child, how, out)
    assert "interrupted: the clients that finished are in " in errors.splitlines()[-1]
    assert 3 <= _finished(out) < 300
    assert (out / "results.parquet").is_file()


@pytest.mark.slow
def test_a_run_on_ray_can_be_stopped_at_any_moment(many, tmp_path):
    """While Ray starts, while its actors and this process import, while the model loads, at work.

    Two seconds are for a machine that does nothing else: so the median is what is held.
    """
    out = tmp_path / "whole"
    began = time.monotonic()
    with running(many, out, "ray") as child:
        at_work(child, out)
        longest = 1.2 * (time.monotonic() - began)
        stop(child, ctrl_c, out)
    taken = []
    moments = random.Random(1)
    for number in range(18):
        out = tmp_path / f"run{number}"
        with running(many, out, "ray") as child:
            time.sleep(moments.uniform(0.0, longest))
            taken.append(stop(child, (ctrl_c, interrupt, terminate)[number % 3], out)[1])
    assert statistics.median(taken) <= 2.0, taken


def _finished(out: Path) -> int:
    if not (out / "ledger.sqlite").is_file():
        return 0
    try:
        with sqlite3.connect(f"file:{out}/ledger.sqlite?mode=ro", uri=True) as db:
            return db.execute("SELECT count(*) FROM clients").fetchone()[0]
    except sqlite3.OperationalError:  # it is being made
        return 0


def test_a_full_disk(scenario, tmp_path, monkeypatch, capsys):
    """The ledger can hold the first clients only; with room again the run goes on."""
    whole = run_scenario(scenario, tmp_path / "whole")
    opened = Ledger.__init__

    def full(self, path):
        opened(self, path)
        pages = self._db.execute("PRAGMA page_count").fetchone()[0]
        self._db.execute(f"PRAGMA max_page_count = {pages}")

    file = tmp_path / "scenario.yaml"
    file.write_text(scenario.to_yaml(), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "__init__", full)
        assert main(["run", str(file), "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "ledger.sqlite: the disk is full: free some space" in error
    resumed = resume_run(tmp_path / "run")
    assert resumed.folder.results.read_bytes() == whole.folder.results.read_bytes()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(scenario, tmp_path, capsys):
    file = tmp_path / "scenario.yaml"
    file.write_text(scenario.to_yaml(), encoding="utf-8")
    (tmp_path / "closed").mkdir(mode=0o500)
    assert main(["run", str(file), "--out", str(tmp_path / "closed/run")]) == 1
    assert "closed" in capsys.readouterr().err


def test_a_file_where_a_folder_should_be(scenario, tmp_path, capsys):
    file = tmp_path / "scenario.yaml"
    file.write_text(scenario.to_yaml(), encoding="utf-8")
    assert main(["run", str(file), "--out", str(file / "run")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "scenario.yaml" in line
