"""Run folders read back: parts, what is missing, and errors for what is not a run folder."""

import json
import shutil

import pytest
from report_toys import model, scenario, words_study, write_matrix, write_run

from fedsim.errors import FedsimError
from fedsim.results.differences import flat, run_names
from fedsim.results.labels import plain_value, settings_label
from fedsim.results.runs import read_runs


def test_a_run_is_one_part(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "run", words_study())])
    (part,) = run.parts
    assert run.name == "toy"
    assert part.settings == {}
    assert part.label == ""
    assert part.clients == ("ann", "bob")
    assert len(part.rows) == 8
    assert part.plan_of["ann", "myqasr/cosine", "bob"].wrong == (2, 3, 2, 2)
    assert [s.client for s in part.sensed] == ["ann", "bob"]
    assert part.layers[3]["name"] == "lm_head"
    assert run.gaps == ()


def test_a_matrix_has_a_part_for_each_combination(tmp_path):
    cells = [(30.0, words_study(30.0)), (40.0, words_study())]
    (run,) = read_runs([write_matrix(tmp_path / "run", "clients.budget_mb", cells)])
    assert [part.label for part in run.parts] == ["30 MB", "40 MB"]
    assert [part.label_but_budget for part in run.parts] == ["", ""]
    assert run.gaps == ()


def test_an_interrupted_matrix_says_what_is_missing(tmp_path):
    chosen = scenario(matrix={"clients.budget_mb": [30.0, 40.0, 50.0]})
    cells = [(30.0, words_study(30.0)), (40.0, words_study())]
    path = write_matrix(tmp_path / "run", "clients.budget_mb", cells, chosen)
    index = json.loads((path / "matrix.json").read_text())
    (path / "matrix.json").write_text(json.dumps(index[:1]))  # written after each combination
    (path / "cells/002/results.parquet").unlink()
    (run,) = read_runs([path])
    assert [part.label for part in run.parts] == ["30 MB", "40 MB"]
    assert run.gaps == (
        "40 MB: The run has not ended, or was cut off; 2 clients finished so far.",
        "1 of 3 combinations were not begun.",
    )


def test_a_run_that_goes_on_or_lost_clients_is_partial(tmp_path):
    failures = [("bob", "plan", "lost."), ("eve", "sense", "no clips."), ("joe", "sense", "gone.")]
    going = write_run(tmp_path / "going", words_study(), ended=False)
    lost = write_run(tmp_path / "lost", words_study(), failures=failures)
    chosen = scenario(clients={"budget_mb": 40.0, "select": ["ann", "bob", "cy"]})
    short = write_run(tmp_path / "short", words_study(), settings=chosen)
    gaps = [read_runs([path])[0].gaps for path in (going, lost, short)]
    assert gaps == [
        ("The run has not ended, or was cut off; 2 clients finished so far.",),
        ("2 clients failed.", "1 client lost some results."),
        ("1 client did not finish.",),
    ]


def test_runs_without_timing_versions_and_layers(tmp_path):
    path = write_run(tmp_path / "run", words_study())
    for name in ("timing.json", "versions.json", "layers.json"):
        (path / name).unlink()
    (part,) = read_runs([path])[0].parts
    assert (part.timing, part.versions, part.layers) == ({}, {}, ())


def test_settings_tell_several_runs_apart(tmp_path):
    one = write_run(
        tmp_path / "one", words_study(30.0), settings=scenario(clients={"budget_mb": 30.0})
    )
    two = write_run(tmp_path / "two", words_study(), settings=scenario(seed=3))
    runs = read_runs([one, two])
    assert [run.name for run in runs] == ["toy one", "toy two"]
    assert [dict(run.parts[0].settings) for run in runs] == [
        {"run": "toy one", "clients.budget_mb": 30.0, "seed": 0},
        {"run": "toy two", "clients.budget_mb": 40.0, "seed": 3},
    ]
    assert runs[0].parts[0].label == "toy one, seed 0, 30 MB"


def test_runs_are_named_by_scenario_else_by_folder_else_by_path(tmp_path):
    paths = [write_run(tmp_path / n, words_study(), settings=scenario(n)) for n in ("x", "y")]
    assert [run.name for run in read_runs(paths)] == ["x", "y"]
    same = [(tmp_path / n, scenario("s")) for n in ("a/run", "b/run")]
    assert run_names([same[0], (tmp_path / "other", scenario("s"))]) == ["s run", "s other"]
    assert run_names(same) == [str(path) for path, _ in same]


def test_more_than_three_differing_settings_are_left_to_a_table(tmp_path):
    chosen = [scenario(seed=i, clients={"budget_mb": 30.0 + i, "limit": 2 + i}) for i in (0, 1)]
    runs = [write_run(tmp_path / f"{i}", words_study(), settings=s) for i, s in enumerate(chosen)]
    assert set(read_runs(runs)[0].parts[0].settings) == {
        *("run", "seed", "clients.budget_mb", "clients.limit")
    }
    more = chosen[1].model_copy(update={"study": False})
    runs[1] = write_run(tmp_path / "more", words_study(), settings=more)
    assert set(read_runs(runs)[0].parts[0].settings) == {"run"}


def test_what_cannot_be_read_is_one_line_with_a_remedy(tmp_path):
    def of(name, failures=(), **files):
        run = write_run(tmp_path / name, [], failures=failures)
        for file, text in files.items():
            next(run.glob(f"{file}.*")).write_text(text)

    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a file")
    of("nobody")
    of("failed", failures=[("bob", "sense", "no clips.")])
    of("other", scenario="nome: x")
    of("damaged", layers="{")
    for name, remedy in {
        "missing": "check the path",
        "empty": "name the folder that fedsim run printed",
        "file": "name the folder that fedsim run printed",
        "nobody": "run it again",
        "failed": r"\(the first failure: no clips\): run it again",
        "other": "run it again",
        "damaged": "restore it, or run again",
    }.items():
        with pytest.raises(FedsimError, match=remedy) as caught:
            read_runs([tmp_path / name])
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_reading_leaves_no_ledger_behind(tmp_path):
    path = write_run(tmp_path / "run", words_study())
    shutil.copytree(path, tmp_path / "copy")
    (tmp_path / "copy/ledger.sqlite").unlink()
    runs = read_runs([path, tmp_path / "copy"])
    assert [len(run.parts[0].rows) for run in runs] == [8, 0]
    assert not (tmp_path / "copy/ledger.sqlite").exists()


def test_settings_in_words():
    values = {"run": "a", "corpus.tuning_clips": 5, "quantization.activation_bits": 8}
    assert settings_label(values) == "a, 5 tuning clips, activation bits 8"
    assert plain_value({"en": 30.0, "it": [1, 2]}) == "en 30, it 1, 2"


def test_flat_settings_are_dotted():
    values = flat(scenario())
    assert values["clients.budget_mb"] == 40.0
    assert values["clients.bit_depths"][0] == 2
    assert values["matrix"] == {}


def test_a_client_without_a_layer_profile(tmp_path):
    path = write_run(tmp_path / "run", [model("a", "uniform/none", "-", [0, 1])], sensed=False)
    (part,) = read_runs([path])[0].parts
    assert part.sensed == ()
