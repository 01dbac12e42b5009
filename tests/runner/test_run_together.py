"""Runs in which neighbouring clients share forward passes: the same results, to the byte."""

from __future__ import annotations

import shutil

import pytest
import toys

from fedsim.runner.single import resume_run, run_scenario
from fedsim.scenario import load_scenario

METHODS = [
    "fp32",
    "uniform",
    {"allocation": "myqasr", "calibration": ["cosine", "dynamic"], "rounding": "nearest"},
    {"allocation": "uniform", "calibration": "minmax", "rounding": "compensated", "moments": "own"},
]


def run(file, folder, *settings):
    return run_scenario(load_scenario(file, list(settings)), folder)


def test_results_and_files_are_those_of_clients_alone(study, tmp_path):
    result = run(study.file, tmp_path / "run", "engine.clients_per_batch=2")
    assert result.failures == []
    assert result.folder.results.read_bytes() == study.result.folder.results.read_bytes()
    for path in study.result.folder.models.iterdir():
        assert (result.folder.models / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whisper", "ctc-layer", "classifier"])
def test_every_kind_of_pass(name, tmp_path, model_folder):
    """Pseudo-labels, sensing, rows, second moments, and models that several clients share."""
    toys.write_corpus(tmp_path / "clips", [f"speaker {i}" for i in range(7)], each=4)
    file = toys.write_scenario(
        tmp_path / "shared.yaml",
        model={"id": str(model_folder(name)), "batch_size": 2},
        corpus={"path": "clips", "group_by": "speaker", "tuning_clips": 2, "test_clips": 2},
        clients={"budget_mb": [1.0, 2.0]},
        methods=METHODS,
    )
    made = set()
    for n in (1, 3, 7, 100):
        result = run(file, tmp_path / str(n), f"engine.clients_per_batch={n}")
        assert result.failures == []
        made.add(result.folder.results.read_bytes())
    assert len(made) == 1


@pytest.mark.slow
def test_workers_of_ray_share_passes_too(study, tmp_path):
    settings = "engine.kind=ray", "engine.workers=2", "engine.clients_per_batch=3"
    result = run(study.file, tmp_path / "run", *settings)
    assert result.folder.results.read_bytes() == study.result.folder.results.read_bytes()


def test_one_clients_bad_clips_are_its_own_failure(study, tmp_path):
    """The others of its group have the results that they have alone, and it fails as it does
    alone; resumed, it is tried again."""
    corpus = shutil.copytree(study.scenario.corpus.path, tmp_path / "clips")
    (corpus / "bob" / "1.wav").write_bytes(b"no audio")
    settings = f"corpus.path={corpus}", "engine.clients_per_batch=5", "save_models=false"
    result = run(study.file, tmp_path / "run", *settings)
    assert [failure.client for failure in result.failures] == ["bob"]
    assert {row.client for row in result.rows} == {"ann", "cyd", "dee", "eve"}
    alone = run(study.file, tmp_path / "alone", *settings[::2])
    assert result.failures == alone.failures
    assert result.rows == alone.rows
    again = resume_run(tmp_path / "run")
    assert (again.failures, again.rows) == (alone.failures, alone.rows)
