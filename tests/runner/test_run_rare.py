"""Errors on rare words, from the devices to the tables."""

from __future__ import annotations

import io
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import toys
import wordfreq
from rich.console import Console

from fedsim.errors import FedsimError
from fedsim.results.folder import RunFolder
from fedsim.results.ledger_reader import read_ledger
from fedsim.results.table import print_table
from fedsim.runner.preflight import preflight
from fedsim.runner.single import resume_run, run_scenario
from fedsim.scenario import load_scenario
from fedsim.speech.corpus import open_clients
from fedsim.speech.models.base import transcribe_clips
from fedsim.study.clients import client_keys, keys_of_cells

BEYOND = 300


@pytest.fixture(scope="module")
def home(tmp_path_factory, speech):
    """Ten clips of two speakers. What the model hears has no word of any list: the reference is
    that, with one rare word more in every second clip and one frequent word in all."""

    def read(clips, language):
        heard = transcribe_clips(speech("ctc-group"), clips)
        return [f"the {text} seven" if i % 2 else f"the {text}" for i, text in enumerate(heard)]

    folder = tmp_path_factory.mktemp("rare")
    toys.write_corpus(folder / "clips", ("ann", "bob", "cyd"), 5, read=read)
    return folder


@pytest.fixture(scope="module")
def write(home, model_folder):
    """f(settings) -> a scenario file."""

    def make(**more):
        corpus = {"path": str(home / "clips"), "group_by": "speaker"}
        return toys.write_scenario(
            home / "toy.yaml",
            **{
                "model": {"id": str(model_folder("ctc-group"))},
                "corpus": {**corpus, "tuning_clips": 2, "test_clips": 3},
                "clients": {"budget_mb": 0.04},
                "methods": ["fp32", "uniform"],
                "engine": {"kind": "inprocess"},
                **more,
            },
        )

    return make


def by_hand(scenario):
    """Client -> rare words of the references, of which full precision hears all but `seven`."""
    frequent = set(wordfreq.top_n_list("en", BEYOND))
    found = {}
    clients = open_clients(scenario.corpus, scenario.clients, scenario.seed)
    for key, client in clients.items():
        words = [word for u in client.test for word in u.text.split()]
        found[key] = words.count("seven"), sum(word not in frequent for word in words)
    return found


@pytest.fixture(scope="module")
def counted(write, home):
    """The result of a run that counts errors on rare words."""
    return run_scenario(load_scenario(write(rare_beyond=BEYOND)), home / "counted")


def test_what_devices_count_are_two_sums_of_each_model(counted):
    """And no word leaves a device, nor any other field than without rare words."""
    expected = by_hand(load_scenario(counted.folder.scenario))
    full = {r.client: (r.rare_errors, r.rare_words) for r in counted.rows if r.method == "fp32"}
    assert full == expected
    assert {(r.client, r.rare_words) for r in counted.rows} == {
        (client, of) for client, (_, of) in expected.items()
    }
    assert {r.rare_beyond for r in counted.rows} == {BEYOND}
    assert all(r.rare_rate == r.rare_errors / r.rare_words for r in counted.rows)
    with read_ledger(counted.folder.ledger) as ledger:
        up = {r.field: r.bytes for r in ledger.all_releases() if r.direction == "up"}
    assert up["rare_errors"] == up["rare_words"] == 2 * 8


def test_without_the_key_results_are_as_before(counted, write, tmp_path):
    plain = run_scenario(load_scenario(write()), tmp_path / "plain").rows
    nothing = dict.fromkeys(("rare_beyond", "rare_errors", "rare_words", "rare_rate"))
    assert [replace(row, **nothing) for row in counted.rows] == plain
    out = io.StringIO()
    print_table(plain, [], Console(file=out, width=120))
    assert "rare" not in out.getvalue()


def test_a_resumed_run_has_the_same_results(counted, tmp_path):
    """Of another number it is refused."""
    folder = RunFolder(Path(shutil.copytree(counted.folder.path, tmp_path / "run")))
    with closing(sqlite3.connect(folder.ledger)) as db, db:
        for table in ("clients", "results", "plans"):
            db.execute(f"DELETE FROM {table} WHERE client = 'bob'")
    folder.results.unlink()
    assert resume_run(folder.path).rows == counted.rows
    assert folder.results.read_bytes() == counted.folder.results.read_bytes()
    yaml = folder.scenario
    yaml.write_text(yaml.read_text().replace("rare_beyond: 300", "rare_beyond: 400"))
    with pytest.raises(FedsimError, match="rare_beyond was 300 and is 400"):
        resume_run(folder.path)


@pytest.mark.slow
def test_worker_processes_count_the_same(counted, write, tmp_path):
    other = write(rare_beyond=BEYOND, engine={"kind": "ray", "workers": 2})
    found = run_scenario(load_scenario(other), tmp_path / "ray")
    assert found.folder.results.read_bytes() == counted.folder.results.read_bytes()


def test_what_cannot_be_counted_is_refused_before_the_run(write, tmp_path):
    def refused(problem, **sections):
        scenario = load_scenario(write(rare_beyond=BEYOND, **sections))
        with pytest.raises(FedsimError, match=problem):
            client_keys(scenario)
        with pytest.raises(FedsimError, match=problem):
            keys_of_cells([scenario, scenario])

    people = ["ann", "bob"]
    corpus = {"group_by": "speaker", "tuning_clips": 2, "test_clips": 2}
    for language, problem in (("zh", "written without spaces"), ("yo", "no word list")):
        toys.write_corpus(tmp_path / language, people, 4, ("en", language))
        spoken = {**corpus, "path": str(tmp_path / language)}
        refused(f"client 'bob': rare_beyond: .*{problem}", corpus=spoken)
    with pytest.raises(FedsimError, match="unspaced have no words to count: remove rare_beyond"):
        load_scenario(write(rare_beyond=BEYOND, text_normalizer="unspaced"))


def test_a_classifier_has_no_words(write, tmp_path, model_folder):
    def classes(clips, language):
        return [toys.CLASSES[i % len(toys.CLASSES)] for i in range(len(clips))]

    toys.write_corpus(tmp_path / "classes", ("ann", "bob"), 4, read=classes)
    corpus = {"path": str(tmp_path / "classes"), "group_by": "speaker", "tuning_clips": 2}
    file = write(
        rare_beyond=BEYOND,
        corpus={**corpus, "test_clips": 2},
        model={"id": str(model_folder("classifier"))},
    )
    scenario = load_scenario(file)
    problem = "names classes and transcribes no words; remove rare_beyond"
    with pytest.raises(FedsimError, match=problem):
        list(preflight(scenario, open_clients(scenario.corpus, scenario.clients, scenario.seed)))
    with pytest.raises(FedsimError, match=problem):
        run_scenario(scenario, tmp_path / "run")
