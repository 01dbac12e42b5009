"""A run that is cut off and resumed gives the table of one that was not, whenever it is cut off."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest
from own_engine import PassingGrid, RefusingGrid
from processes import MARK, marked

from fedsim.cli import main
from fedsim.errors import FedsimError
from fedsim.results.ledger import Ledger
from fedsim.runner.single import resume_run, run_scenario
from fedsim.scenario import load_scenario

PLAIN = "methods=[fp32, uniform, {allocation: myqasr, calibration: minmax}]"
SHARED = "methods=[fp32, {allocation: myqasr, calibration: minmax, tuned_on: [own, other]}]"
FAULTS = "faults=[{kind: drop_before, share: 0.3}, {kind: corrupt, share: 0.3}]"


class PowerCutError(BaseException):
    """Nothing in a run catches it."""


@pytest.fixture
def chosen(study):
    def chosen_(*overrides):
        fixed = ["engine.kind=inprocess", "save_models=false", "corpus.test_clips=2"]
        return load_scenario(study.file, [*fixed, *overrides])

    return chosen_


class CountingGrid(PassingGrid):
    """Counts requests and replies together, and cuts the power after some of them."""

    def __init__(self, grid, limit=10**6):
        super().__init__(grid)
        self.limit, self.passed, self.replies = limit, 0, 0

    def count(self):
        self.passed += 1
        if self.passed > self.limit:
            raise PowerCutError

    def push(self, message):
        self.count()
        return super().push(message)

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        for _ in replies:
            self.count()
            self.replies += 1
        return replies


def contents(folder):
    with Ledger(folder.ledger) as ledger:
        return (
            folder.results.read_bytes(),
            ledger.failures(),
            sorted(map(repr, ledger.all_releases())),
            ledger.events(),
            ledger.finished(),
        )


@pytest.mark.parametrize(
    ("methods", "faults"),
    [
        (SHARED, FAULTS),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((SHARED, "faults=[]"), (PLAIN, FAULTS), (PLAIN, "faults=[]"))
        ),
    ],
)
def test_cut_off_after_any_message(chosen, engine, tmp_path, methods, faults):
    grids = []

    def run(resume=False, limit=10**6, place=tmp_path / "whole"):
        engine.wrap = lambda grid: grids.append(CountingGrid(grid, limit)) or grids[-1]
        return resume_run(place) if resume else run_scenario(scenario, place)

    scenario = chosen(methods, faults, "engine.kind=own")
    whole = run()
    messages, replies = grids[-1].passed, grids[-1].replies
    for limit in sorted(random.Random(0).sample(range(messages), min(messages, 4))):
        place = tmp_path / str(limit)
        with pytest.raises(PowerCutError):
            run(limit=limit, place=place)
        with Ledger(place / "ledger.sqlite") as ledger:
            finished = len(ledger.finished())
        resumed = run(resume=True, place=place)
        assert contents(resumed.folder) == contents(whole.folder)
        if finished:  # what was finished was not asked for again
            assert grids[-1].replies < replies


VOICES = """\
name: killed
model: {id: "bundled:ctc"}
corpus:
  kind: voices
  group_by: speaker
  population: {speakers: 30}
  tuning_clips: 1
  test_clips: 1
clients: {budget_mb: [1.6, 2.0]}
methods: [fp32]
engine: {kind: ray, workers: 2}
"""


@pytest.fixture(scope="module")
def killable(tmp_path_factory):
    """f(methods) -> the file of a scenario of 30 voices, and what a whole run of it left."""
    home = tmp_path_factory.mktemp("killable")

    @cache
    def made(methods):
        file = home / f"{len(list(home.glob('*.yaml')))}.yaml"
        file.write_text(VOICES)
        file.write_text(load_scenario(file, [methods, FAULTS]).to_yaml())
        return file, run_scenario(load_scenario(file, ["engine.kind=inprocess"]), home / file.stem)

    return made


def begun(file, place):
    """Start a run; its processes are marked with the path of its folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "fedsim", "run", str(file), "--out", str(place)],
        env={**os.environ, MARK: str(place)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def steps(place):
    """How many clients a ledger has, and answers that it keeps of those under way."""
    try:
        with closing(sqlite3.connect(f"file:{place / 'ledger.sqlite'}?mode=ro", uri=True)) as db:
            query = "SELECT (SELECT count(*) FROM clients) + (SELECT count(*) FROM kept)"
            return db.execute(query).fetchone()[0]
    except sqlite3.Error:
        return 0


def wait_for(child, place, step):
    while steps(place) < step:
        assert child.poll() is None
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_a_random_moment(killable, tmp_path, seed):
    """kill -9 of the driver of a real run, on Ray, while clients work; then resume: the same
    bytes."""
    file, whole = killable(SHARED if seed % 2 else PLAIN)
    place, all_steps = tmp_path / "cut", steps(whole.folder.path)
    step = random.Random(seed).randrange(int(0.9 * all_steps))
    child = begun(file, place)
    wait_for(child, place, step)
    child.kill()
    child.wait()
    assert step <= steps(place) < all_steps  # it was at work, and had not ended
    result = resume_run(place, load_scenario(file, ["engine.kind=inprocess"]).engine)
    assert contents(result.folder)[0] == contents(whole.folder)[0]
    assert result.failures == whole.failures


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_worker_killed_at_a_random_moment(killable, tmp_path, seed):
    """kill -9 of one of the two processes that play clients: the run goes on, to the same bytes."""
    file, whole = killable(SHARED if seed % 2 else PLAIN)
    place, all_steps = tmp_path / "cut", steps(whole.folder.path)
    child = begun(file, place)
    wait_for(child, place, 1 + random.Random(seed).randrange(int(0.7 * all_steps)))
    workers = [p for p, name in marked(str(place), 0.0).items() if name.startswith("ray::Worker")]
    assert len(workers) == 2
    os.kill(workers[seed % 2], signal.SIGKILL)
    assert steps(place) < all_steps
    assert child.wait() == 0
    assert (place / "results.parquet").read_bytes() == contents(whole.folder)[0]


def test_resuming_a_run_that_has_ended_changes_nothing(chosen, engine, tmp_path):
    whole = run_scenario(chosen(PLAIN, "engine.kind=own"), tmp_path / "run")
    before = contents(whole.folder)
    engine.wrap = RefusingGrid
    assert resume_run(tmp_path / "run").rows == whole.rows
    assert contents(whole.folder) == before


def test_from_the_command_line(chosen, tmp_path, capsys):
    whole = run_scenario(chosen(PLAIN), tmp_path / "run")
    table = whole.folder.results.read_bytes()
    with closing(sqlite3.connect(whole.folder.ledger)) as db, db:
        db.execute("DELETE FROM clients WHERE client = 'bob'")
        db.execute("DELETE FROM results WHERE client = 'bob'")
    whole.folder.results.unlink()
    assert main(["run", "--resume", str(tmp_path / "run"), "--engine", "inprocess"]) == 0
    assert whole.folder.results.read_bytes() == table
    assert "bob" in capsys.readouterr().out
    for wrong in (["run"], ["run", "quickstart", "--resume", "x"]):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)
        assert "--resume" in capsys.readouterr().err
    for wrong, sentence in (
        (
            ["run", "--resume", str(tmp_path / "run"), "--threads", "2"],
            "remove --set, --out and --threads",
        ),
        (["run", "--resume", str(tmp_path / "no")], "not a run folder"),
    ):
        assert main(wrong) == 1
        assert sentence in capsys.readouterr().err


def test_a_folder_has_one_run_at_a_time(chosen, tmp_path):
    place = tmp_path / "run"
    run_scenario(chosen("methods=[fp32]"), place)
    hold = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); "
        "lock.acquire(); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(place / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline()
        with pytest.raises(FedsimError, match="another process is running in this folder"):
            resume_run(place)
        other.kill()
    resume_run(place)  # the lock went with its process


def rewritten(**changes):
    """Change lines of scenario.yaml: what is there -> what takes its place."""

    def spoil(run):
        text = (run / "scenario.yaml").read_text()
        for old, new in changes.values():
            assert old in text, old
            text = text.replace(old, new)
        (run / "scenario.yaml").write_text(text)

    return spoil


def with_fact(kind, name, value):
    """Let a run have begun with something else."""

    def spoil(run):
        with Ledger(run / "ledger.sqlite") as ledger:
            ledger.put_facts({kind: (ledger.facts(kind) | {name: value}).items()})

    return spoil


SPOILED = [
    (lambda run: (run / "scenario.yaml").unlink(), "not a run folder"),
    (with_fact("package", "torch", "1.0"), "begun with torch 1.0, but"),
    (with_fact("package", "transformers", "1.0"), "begun with transformers 1.0, but"),
    (
        rewritten(seed=("seed: 3", "seed: 4")),
        r"scenario\.yaml: .* \(seed was 3 and is 4\): restore",
    ),
    (rewritten(clips=("test_clips: 2", "test_clips: 1")), "corpus.test_clips was 2 and is 1"),
    (
        with_fact("setting", "methods[0].allocation", '"uniform"'),
        r'methods\[0\]\.allocation was "uniform" and is "fp32"',
    ),
]


def test_what_cannot_be_resumed(chosen, tmp_path):
    run_scenario(chosen("methods=[fp32]"), tmp_path / "run")
    before = (tmp_path / "run/results.parquet").read_bytes()
    for number, (spoil, words) in enumerate(SPOILED):
        place = shutil.copytree(tmp_path / "run", tmp_path / str(number))
        spoil(place)
        with pytest.raises(FedsimError, match=words):
            resume_run(place)
        assert (place / "results.parquet").read_bytes() == before


def test_settings_without_effect_may_differ(chosen, tmp_path):
    whole = run_scenario(chosen("methods=[fp32]"), tmp_path / "run")
    spoil = rewritten(
        name=("name: ", "name: other-"),
        workers=("workers: ", "workers: 2 # "),
        save=("save_models: false", "save_models: true"),
    )
    spoil(tmp_path / "run")
    resumed = resume_run(tmp_path / "run")
    assert resumed.rows == whole.rows


def test_a_run_is_not_resumed_on_another_fleet(chosen, tmp_path):
    """Not on one whose table of devices was changed since, or is gone."""
    table = tmp_path / "devices.csv"
    table.write_text("device\nwatch\nhub\n")
    scenario = chosen("methods=[{allocation: uniform}]", f"fleet={{trace: {table}}}")
    run_scenario(scenario, tmp_path / "run")
    resume_run(tmp_path / "run")
    table.write_text("device\nhub\n")
    with pytest.raises(FedsimError, match=r"devices\.csv was changed \(fleet\.trace\); restore"):
        resume_run(tmp_path / "run")
    table.unlink()
    with pytest.raises(FedsimError, match=r"devices\.csv"):
        resume_run(tmp_path / "run")


def test_a_run_is_not_resumed_on_another_corpus_or_model(study, chosen, tmp_path):
    scenario = chosen("methods=[fp32]")
    model, clips = Path(scenario.model.id), Path(scenario.corpus.path)
    for name, place in (("model", model), ("clips", clips)):
        shutil.copytree(place, tmp_path / name)
    scenario = chosen(
        "methods=[fp32]", f"model.id={tmp_path / 'model'}", f"corpus.path={tmp_path / 'clips'}"
    )
    whole = run_scenario(scenario, tmp_path / "run")
    assert resume_run(tmp_path / "run").rows == whole.rows
    clip = next((tmp_path / "clips").rglob("*.wav"))
    weights = next((tmp_path / "model").glob("*.safetensors"))
    for file, key in ((clip, "corpus.path"), (weights, "model.id")):
        content = file.read_bytes()
        status = file.stat()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(FedsimError, match=rf"{file.name} was changed \({key}\); restore them"):
            resume_run(tmp_path / "run")
        file.write_bytes(content)
    (tmp_path / "model/notes.txt").write_text("new")
    with pytest.raises(FedsimError, match=r"notes\.txt was added \(model\.id\)"):
        resume_run(tmp_path / "run")
    (tmp_path / "model/notes.txt").unlink()
    assert resume_run(tmp_path / "run").rows == whole.rows


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(chosen, tmp_path):
    run_scenario(chosen("methods=[fp32]"), tmp_path / "run")
    Path(tmp_path / "run").chmod(0o500)
    with pytest.raises(FedsimError, match="cannot be written"):
        resume_run(tmp_path / "run")
