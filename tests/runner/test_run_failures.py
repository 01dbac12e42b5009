"""Runs in which clients fail, each in its own way: one reason for each, and the others' results."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import paper
import pytest
import toys
from own_engine import raising

from fedsim.base import progress
from fedsim.base.units import MB
from fedsim.errors import FedsimError
from fedsim.protocol import messages as m
from fedsim.results.folder import read_results
from fedsim.results.ledger import Ledger
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario

GOOD = ["ann", "bob", "zoe"]
BAD = {
    # no clip is left for tuning
    "few": r"client 'few' has no tuning clips: the corpus holds 2 of its clips and "
    r"corpus.test_clips takes 2 first; lower it or leave the client out",
    "lost": r"client 'lost': tuning clip \d is missing; check file_name",
    "junk": r"client 'junk': tuning clip \d cannot be read \(.+\); replace it or",
    "nan": r"client 'nan': tuning clip \d holds 1 samples that are NaN or infinite",
    "none": r"client 'none': tuning clip \d is empty; leave it out",
    "short": r"client 'short': tuning clip \d lasts 0.01 s; the shortest usable",
    "slow": r"client 'slow': tuning clip \d has a rate of 8,000 Hz; resample it",
    "wide": r"client 'wide': tuning clip \d has 2 channels; mix it down to one",
    "mute": r"client 'mute': test clip \d has no text to compare with; fill in its text",
    "tiny": r"client 'tiny': a budget of 10,485 bytes \(0.01 MB\) is below the smallest feasible "
    r"model file of [\d,]+ bytes \(0.02 MB: 2 bits in every layer\); raise the budget",
    "boom": r"client 'boom' failed in query.sense: ZeroDivisionError in \S+.py:\d+",
    "late": r"client 'late' failed in evaluate.candidates: KeyError in \S+.py:\d+",
    "torn": r"client 'torn' failed in train.personalize: OSError \(no space\) in \S+.py:\d+",
}
STAGES = {"tiny": "plan", "late": "evaluate", "torn": "personalize"}
METHODS = [
    "fp32",
    {"allocation": "uniform", "calibration": ["none", "minmax"]},
    {"allocation": "myqasr", "calibration": ["minmax"]},
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Four clips of every speaker; those of a bad one are spoiled in the way of its name."""
    folder = tmp_path_factory.mktemp("failures") / "clips"
    toys.write_corpus(folder, [*GOOD, *BAD], each=4)
    rng = np.random.default_rng(0)
    for i in range(4):
        clip = toys.clip(0.5, seed=i)
        (folder / f"lost/{i}.wav").unlink()
        (folder / f"junk/{i}.wav").write_bytes(rng.bytes(5000))
        toys.write_wav(folder / f"nan/{i}.wav", np.where(np.arange(8000) == 100, np.nan, clip))
        toys.write_wav(folder / f"none/{i}.wav", clip[:0])
        toys.write_wav(folder / f"short/{i}.wav", clip[:160])
        toys.write_wav(folder / f"slow/{i}.wav", clip, rate=8000)
        toys.write_wav(folder / f"wide/{i}.wav", np.stack([clip, clip], axis=1))
    with (folder / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [r for r in rows if r["file_name"] not in ("few/2.wav", "few/3.wav")]
    for row in rows:
        if row["speaker"] == "mute":
            row["text"] = ""
    toys.write_metadata(folder, rows)
    return folder


@pytest.fixture
def broken(engine):
    """Let the code on the device raise for three clients."""
    engine.mods = [
        raising("boom", m.SENSE, ZeroDivisionError("a defect")),
        raising("late", m.EVALUATE, KeyError("a defect")),
        raising("torn", m.PERSONALIZE, OSError(28, "no space")),
    ]


@pytest.fixture
def scenario(tmp_path, corpus, model_folder, engine):
    def make(*overrides, methods=METHODS, budget=0.04):
        budgets = dict.fromkeys([*GOOD, *BAD], budget) | {"tiny": 0.01}
        file = toys.write_scenario(
            tmp_path / "toy.yaml",
            model={"id": str(model_folder("ctc-group"))},
            corpus={
                "path": str(corpus),
                "group_by": "speaker",
                "tuning_clips": 2,
                "test_clips": 2,
            },
            clients={"budget_mb": budgets},
            quantization=paper.QUANTIZATION,
            methods=methods,
            engine={"kind": "own"},
        )
        return load_scenario(file, overrides)

    return make


def methods_of(rows, client):
    return sorted((r.method, r.tuned_on) for r in rows if r.client == client)


def test_each_failure_has_a_reason_and_the_others_finish(scenario, broken, tmp_path):
    result = run_scenario(scenario(), tmp_path / "run")
    found = {f.client: f for f in result.failures}
    assert len(found) == len(result.failures)
    assert set(found) == set(BAD)
    for client, reason in BAD.items():
        failure = found[client]
        assert re.match(reason, failure.reason), failure.reason
        assert "\n" not in failure.reason
        assert failure.stage == STAGES.get(client, "sense")
    for client in GOOD:
        assert methods_of(result.rows, client) == [
            ("fp32", ""),
            ("myqasr/minmax", client),
            ("uniform/minmax", client),
            ("uniform/none", ""),
        ]
    assert {r.client for r in result.rows} == set(GOOD)
    assert read_results(result.folder.results) == result.rows
    assert not (result.folder.path / "bank").exists()
    with Ledger(result.folder.ledger) as ledger:
        assert ledger.finished() == set(GOOD)
        senders = {r.client for r in ledger.all_releases() if r.direction == "up"}
    # Of those that failed later, what had left the device by then is listed as well.
    assert senders == {*GOOD, *STAGES}


def test_good_clients_are_the_same_beside_bad_ones(scenario, broken, tmp_path):
    mixed = run_scenario(scenario(), tmp_path / "mixed")
    alone = run_scenario(scenario(f"clients.select=[{', '.join(GOOD)}]"), tmp_path / "alone")
    assert alone.failures == []
    assert alone.rows == mixed.rows


def test_failed_clients_count_as_done_in_the_progress(scenario, broken, tmp_path):
    shown = progress.Progress()
    with progress.using(shown):
        run_scenario(scenario(), tmp_path / "run")
    everybody = len(GOOD) + len(BAD)
    assert shown.title() == "personalize"
    assert shown.done() == (everybody, everybody)
    assert f"{len(BAD)} failed" in shown.line()


SHARED = [
    "fp32",
    {"allocation": "uniform", "calibration": ["none"]},
    {"allocation": "myqasr", "calibration": ["minmax"], "tuned_on": ["own", "other"]},
]


@pytest.mark.parametrize("bad", ["boom", "tiny", "torn"])
def test_a_model_of_a_client_that_failed_is_missing(scenario, broken, tmp_path, bad):
    """ann's other is bob, bob's is the one that fails (wherever it does), zoe's is ann."""
    keys = ["ann", "bob", bad, "zoe"]
    chosen = scenario(f"clients.select=[{', '.join(keys)}]", methods=SHARED)
    result = run_scenario(chosen, tmp_path / "run")
    own = [("fp32", ""), ("uniform/none", "")]
    for client, other in (("ann", ["bob"]), ("zoe", ["ann"]), ("bob", [])):
        tuned = sorted(("myqasr/minmax", source) for source in [client, *other])
        assert methods_of(result.rows, client) == sorted([*own, *tuned])
    assert methods_of(result.rows, bad) == []
    reasons = {f.client: f.reason for f in result.failures}
    assert set(reasons) == {"bob", bad}
    assert re.match(BAD[bad], reasons[bad])
    assert reasons["bob"] == f"client 'bob': no model tuned on {bad!r}, because {bad!r} failed"


def test_a_model_of_a_client_that_fails_only_when_tested_is_there(scenario, broken, tmp_path):
    keys = ["ann", "bob", "late", "zoe"]
    chosen = scenario(f"clients.select=[{', '.join(keys)}]", methods=SHARED)
    result = run_scenario(chosen, tmp_path / "run")
    assert ("myqasr/minmax", "late") in methods_of(result.rows, "bob")
    assert {f.client for f in result.failures} == {"late"}


def test_the_last_client_standing_has_no_other(scenario, broken, tmp_path):
    """Its own model must not be passed off as another's."""
    methods = ["fp32", {"allocation": "myqasr", "calibration": ["minmax"], "tuned_on": ["other"]}]
    chosen = scenario("clients.select=[ann, boom]", methods=methods)
    result = run_scenario(chosen, tmp_path / "run")
    assert methods_of(result.rows, "ann") == [("fp32", "")]
    assert {f.client for f in result.failures} == {"ann", "boom"}


def test_when_every_client_fails_the_table_is_empty(scenario, broken, tmp_path):
    result = run_scenario(scenario("clients.select=[boom, few]"), tmp_path / "run")
    assert result.rows == []
    assert len(result.failures) == 2
    assert read_results(result.folder.results) == []


def test_one_byte_decides(scenario, tmp_path):
    """The smallest size that a failure names is enough, and one byte less is not."""
    only = "clients.select=[ann]"
    small = run_scenario(scenario(only, budget=0.01), tmp_path / "small")
    (failure,) = small.failures
    size = int(re.search(r"model file of ([\d,]+) bytes", failure.reason)[1].replace(",", ""))
    enough = run_scenario(scenario(only, budget=size / MB), tmp_path / "enough")
    assert enough.failures == []
    assert {r.file_bytes for r in enough.rows if r.method != "fp32"} == {size}
    short = run_scenario(scenario(only, budget=(size - 1) / MB), tmp_path / "short")
    assert f"a budget of {size - 1:,} bytes" in short.failures[0].reason


def test_convert_mends_rate_and_channels(scenario, tmp_path):
    chosen = scenario("clients.select=[slow, wide]", "corpus.convert=true")
    result = run_scenario(chosen, tmp_path / "run")
    assert result.failures == []
    assert {r.client for r in result.rows} == {"slow", "wide"}


FATAL = [
    (["model.id=./nowhere"], r"/nowhere; check model.id"),
    (["corpus.path=./nowhere"], r"corpus.path \S+/nowhere .*; check the path"),
    (["clients.select=[ann, bobb]", "clients.budget_mb=1"], r"clients.select .*'bobb'.*'bob'"),
    (["clients.budget_mb={ann: 1}"], r"client 'bob' has no budget in clients.budget_mb; add one"),
    (["methods=[{allocation: myqasr, tuned_on: zo}]"], r"'zo'.*'zoe'"),
    (["model.keep=[lm_haed]"], r"'lm_haed'.* did you mean 'lm_head'"),
    (["model.window_s=4"], r"model.window_s is 4"),
    (["corpus.columns={speaker: who}"], r"no column 'who' for speaker"),
]


def test_what_no_client_can_fix_ends_the_run(scenario, tmp_path):
    for number, (overrides, words) in enumerate(FATAL):
        chosen, place = scenario(*overrides), tmp_path / str(number)
        with pytest.raises(FedsimError, match=words):
            run_scenario(chosen, place)
        # Errors before anything ran leave no folder, and no run leaves a bank behind.
        assert not (place / "bank").exists()


def test_an_interrupted_run_keeps_what_finished(scenario, engine, tmp_path):
    # ann is the last: this engine answers the latest message first
    engine.mods = [raising("ann", m.EVALUATE, KeyboardInterrupt())]
    chosen = scenario(f"clients.select=[{', '.join(GOOD)}]")
    with pytest.raises(KeyboardInterrupt):
        run_scenario(chosen, tmp_path / "run")
    rows = read_results(tmp_path / "run" / "results.parquet")
    assert {r.client for r in rows} == {"bob", "zoe"}
    assert not (tmp_path / "run" / "bank").exists()
