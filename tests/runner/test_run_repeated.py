"""The same study again, with fewer clients, and with another seed."""

from __future__ import annotations

from dataclasses import replace

from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario


def test_a_rerun_is_the_same_to_the_byte(study, tmp_path):
    again = run_scenario(study.scenario, tmp_path / "again")
    assert again.rows == study.result.rows
    assert again.folder.results.read_bytes() == study.result.folder.results.read_bytes()
    for path in study.result.folder.models.iterdir():
        assert (again.folder.models / path.name).read_bytes() == path.read_bytes()


def test_a_client_is_the_same_without_the_others(study, tmp_path):
    """Its split, plan and ranges depend on the seed, its key and its clips alone."""
    overrides = [
        "clients.select=[dee]",
        "clients.budget_mb=0.0334",
        "save_models=false",
        "methods=[fp32, {allocation: myqasr, calibration: [cosine, hessian]}, shuffled]",
    ]
    alone = run_scenario(load_scenario(study.file, overrides), tmp_path / "alone")
    assert alone.failures == []
    assert len(alone.rows) == 4
    rows = {(row.client, row.method, row.tuned_on): row for row in study.result.rows}
    for row in alone.rows:
        method = row.method.replace("shuffled/", "shuffled-1/")
        expected = rows["dee", method, row.tuned_on]
        assert replace(row, method=method, allocation=expected.allocation) == expected


def test_another_seed_is_another_split(study, tmp_path):
    scenario = load_scenario(study.file, ["seed=4", "methods=[fp32]", "save_models=false"])
    other = run_scenario(scenario, tmp_path / "other")
    first = {r.client: r.chars for r in study.result.rows if r.method == "fp32"}
    assert {r.client: r.chars for r in other.rows} != first
