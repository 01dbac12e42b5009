"""Runs that are stopped or cannot write: what is done is kept, no process is left, one sentence."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
from pathlib import Path

import pytest
from processes import foreground, marked

from fedsim.cli import main
from fedsim.results.ledger import Ledger
from fedsim.run.single import resume_run, run_scenario
from fedsim.scenario import load_scenario

QUICK = ["engine.kind=inprocess", "save_models=false"]
METHODS = "methods=[fp32, {allocation: myqasr, calibration: [minmax, cosine]}]"


@pytest.fixture
def scenario(study):
    return load_scenario(study.file, [*QUICK, METHODS])


@pytest.mark.parametrize(
    ("engine", "stop"),
    [
        ("ray", signal.SIGTERM),
        pytest.param("ray", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("inprocess", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("inprocess", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_stopped_keeps_what_is_done(study, tmp_path, engine, stop):
    """Ctrl-C reaches all of its processes, kill one.

    There are 300 clients, so that it is at work; what had finished by then is taken up again.
    """
    file = tmp_path / "many.yaml"
    many = {"kind": "voices", "path": None, "population": {"speakers": 300}, "tuning_clips": 1}
    said = study.scenario.model_dump()
    said["corpus"] = {**many, "group_by": "speaker", "test_clips": 1}
    said["clients"] = {"budget_mb": 0.04}
    said["methods"] = [{"allocation": "myqasr", "calibration": "minmax"}]
    scenario = type(study.scenario).model_validate(said)
    file.write_text(scenario.to_yaml(), encoding="utf-8")
    out = tmp_path / "run"
    words = [sys.executable, "-m", "fedsim", "run", str(file), "--engine", engine]
    path = str(Path(__file__).parents[1])
    with foreground([*words, "--out", str(out)], str(tmp_path), PYTHONPATH=path) as child:
        deadline = time.monotonic() + 60
        while _finished(out) < 3:
            assert child.poll() is None, child.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (os.killpg if stop == signal.SIGINT else os.kill)(child.pid, stop)
        _, errors = child.communicate(timeout=30)
        assert child.returncode == 130
        assert "interrupted: the clients that finished are in " in errors.splitlines()[-1]
        assert "Traceback" not in errors
        assert marked(str(tmp_path)) == {}
    assert 3 <= _finished(out) < 300
    assert (out / "results.parquet").is_file()


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
    assert "ledger.sqlite: the disk is full: what was written is kept; free some space" in error
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
