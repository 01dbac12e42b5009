"""`fedsim run`: options in, table, folder and exit code out."""

from __future__ import annotations

import io
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import toys
from entries import added

from fedsim.base import progress
from fedsim.cli import main
from fedsim.cli.links import link
from fedsim.engine import ENGINES, Engine, EngineSettings
from fedsim.errors import FedsimError
from fedsim.scenario import load_scenario
from fedsim.scenario.corpus import READERS, CorpusReader


@pytest.fixture
def toy(folder, model_folder) -> Path:
    """A scenario that runs in a moment: two speakers and the full-precision model."""
    toys.write_corpus(folder / "speech", speakers=("ann", "bob"), each=3)
    return toys.write_scenario(
        folder / "toy.yaml",
        model={"id": str(model_folder("ctc-group"))},
        corpus={"path": "./speech", "group_by": "speaker", "tuning_clips": 1, "test_clips": 2},
        clients={"budget_mb": 0.0334},
    )


@dataclass
class Probe:
    """An engine that notes how it is opened, and raises."""

    error: BaseException = field(default_factory=lambda: FedsimError("the model is a teapot"))
    clients: list[str] = field(default_factory=list)
    settings: EngineSettings | None = None
    shown: Any = None

    @contextmanager
    def open(self, app, clients, run_config, settings):
        self.clients, self.settings = list(clients), settings
        self.shown = progress.current()
        raise self.error
        yield


@pytest.fixture
def probe():
    """The engine `probe`, in the registry for one test."""
    found = Probe()
    with added(ENGINES, "probe", Engine(found.open, summary="Raises.")):
        yield found


def test_run_prints_the_table_and_then_the_folder(toy, capsys, folder):
    assert main(["run", "toy.yaml"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert "fp32" in out
    found, _, last, report = out.splitlines()[-4:]
    assert found.startswith("Full precision (0.10 MB): WER ")
    assert last.startswith(f"run folder: {folder}/runs/toy/2")
    made = Path(last.removeprefix("run folder: "))
    assert (made / "results.parquet").exists()
    assert report == f"report: {made}/report.html"
    assert "</html>" in (made / "report.html").read_text()


def test_a_run_without_a_report(toy, capsys, folder):
    assert main(["run", "toy.yaml", "--out", "here", "--no-report"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"run folder: {folder}/here"
    assert not (folder / "here/report.html").exists()


def test_paths_are_links_on_a_terminal_alone(folder, monkeypatch):
    """OSC 8: the address, the text, and the end of the link."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert link(Path("a b")) == f"{folder}/a b"
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert link(Path("a b")) == f"\x1b]8;;file://{folder}/a%20b\x1b\\{folder}/a b\x1b]8;;\x1b\\"
    monkeypatch.setenv("TERM", "dumb")
    assert link(Path("a b")) == f"{folder}/a b"


def test_references_without_a_word_are_named_after_the_table(toy, capsys, folder):
    """Three of four clips are tested, two of which are noises."""
    noises = ["[cough]", "one two", "(music)", "three four"]
    toys.write_corpus(folder / "speech", ("ann",), 4, read=lambda clips, language: noises)
    assert main(["run", "toy.yaml", "--set", "corpus.test_clips=3"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-5] == "not scored: 2 references without a word once normalized, of ann (2)"


def test_run_options_reach_the_scenario(probe, folder):
    words = "run small.yaml --set seed=5 clients.budget_mb=7 --set name=other --engine probe"
    words += " --workers 3 --threads 2 --address head:6379 --out here"
    assert main(words.split()) == 1
    scenario = load_scenario(folder / "here" / "scenario.yaml")
    assert (scenario.seed, scenario.clients.budget_mb, scenario.name) == (5, 7.0, "other")
    engine = scenario.engine
    assert (engine.kind, engine.address) == ("probe", "head:6379")
    assert (engine.workers, engine.threads) == (3, 2)
    settings = probe.settings
    assert (settings.workers, settings.threads, settings.address) == (3, 2, "head:6379")
    assert settings.shared == folder / "here"
    assert probe.clients == ["ann", "bob"]
    assert not (folder / "runs").exists()
    assert type(probe.shown) is progress.Progress  # active, and quiet where no terminal is


def test_run_keeps_the_engine_of_the_scenario_otherwise(probe, folder):
    main(["run", "small.yaml", "--set", "engine.kind=probe", "engine.workers=4", "--out", "here"])
    assert probe.settings.workers == 4
    assert load_scenario(folder / "here" / "scenario.yaml").engine.kind == "probe"


def test_exit_code_when_clients_fail(toy, capsys, folder):
    (folder / "speech/ann/0.wav").write_bytes(b"no audio 0")
    (folder / "speech/ann/1.wav").write_bytes(b"no audio 1")
    (folder / "speech/ann/2.wav").write_bytes(b"no audio 2")
    assert main(["run", "toy.yaml"]) == 0
    assert "ann (evaluate): " in capsys.readouterr().out
    assert main(["run", "toy.yaml", "--set", "clients.select=[ann]", "--out", "b"]) == 1
    out = capsys.readouterr().out
    assert "ann (evaluate): " in out
    assert "No client finished" in out


def test_an_error_has_no_traceback(probe, capsys):
    assert main(["run", "small.yaml", "--engine", "probe"]) == 1
    assert capsys.readouterr() == ("", "error: the model is a teapot\n")


def test_a_mistake_in_the_scenario_is_reported_before_anything_is_made(probe, capsys, folder):
    assert main(["run", "broken.yaml"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: broken.yaml:5: unknown key 'budgt_mb' in clients: did you mean" in err
    assert main(["run", "nowhere"]) == 1
    assert main(["run", "small.yaml", "--engine", "prob"]) == 1
    assert "--engine: there is no engine 'prob': did you mean 'probe'?" in capsys.readouterr().err
    assert (probe.clients, (folder / "runs").exists()) == ([], False)


def test_the_default_engine_may_be_named(toy):
    assert main(["run", "toy.yaml", "--engine", "auto", "--out", "here"]) == 0
    assert load_scenario("here/scenario.yaml").engine.kind == "auto"


def test_ctrl_c_names_what_is_kept(probe, capsys):
    probe.error = KeyboardInterrupt()
    assert main(["run", "small.yaml", "--engine", "probe", "--out", "here"]) == 130
    assert capsys.readouterr().err == (
        "interrupted: the clients that finished are in here/ledger.sqlite; "
        "to continue: fedsim run --resume here\n"
    )


def test_ctrl_c_before_anything_was_written(capsys, folder):
    def interrupted(corpus, seed):
        raise KeyboardInterrupt

    reader = CorpusReader(interrupted, summary="Raises.", needs=("path",))
    with added(READERS, "mine", reader):
        assert main(["run", "small.yaml", "--set", "corpus.kind=mine"]) == 130
    assert capsys.readouterr().err == "interrupted: nothing is kept\n"
    assert not list(folder.glob("runs/small/*"))


def test_resume_takes_no_other_options(toy, capsys):
    assert main(["run", "toy.yaml", "--out", "here"]) == 0
    capsys.readouterr()
    assert main(["run", "--resume", "here"]) == 0
    assert "run folder: " in capsys.readouterr().out
    for words in (["--set", "seed=3"], ["--out", "there"], ["--threads", "2"]):
        assert main(["run", "--resume", "here", *words]) == 1
        assert "remove --set, --out and --threads" in capsys.readouterr().err


def test_out_must_be_empty(capsys):
    assert main(["run", "small.yaml", "--out", "clips"]) == 1
    assert "error: clips: the folder is not empty" in capsys.readouterr().err
