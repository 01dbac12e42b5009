"""Reading the run config, of `fedsim run` and of `flwr run`."""

from __future__ import annotations

import pytest
import toys
from flwr.app import Context, RecordDict

from fedsim.errors import FedsimError
from fedsim.protocol.run_config import RunConfig, is_complete, read_run_config
from fedsim.scenario import load_scenario
from fedsim.scenario.schema import scenario_from_json

SECTIONS = {
    "model": {"id": "bundled:ctc"},
    "corpus": {"path": "clips", "group_by": "speaker"},
    "clients": {"budget_mb": 2},
}


def context(**run_config) -> Context:
    return Context(run_id=77, node_id=5, node_config={}, state=RecordDict(), run_config=run_config)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A scenario in the working folder."""
    monkeypatch.chdir(tmp_path)
    return toys.write_scenario(tmp_path / "my.yaml", **SECTIONS)


def test_a_run_config_of_fedsim_run(tmp_path):
    made = RunConfig('{"name": "toy"}', tmp_path / "run")
    config = made.to_flower()
    assert is_complete(config)
    assert read_run_config(context(**config)) == made
    assert made.bank_dir == tmp_path / "run" / "bank"


def test_a_run_config_of_flwr_run(file, tmp_path):
    for name in ("my.yaml", f"{tmp_path}/my.yaml"):
        config = {"scenario": name, "out": ""}
        assert not is_complete(config)
        found = read_run_config(context(**config))
        assert scenario_from_json(found.scenario) == load_scenario(file)
        assert found.run_dir == tmp_path / "runs" / "toy" / "flower-77"
        assert read_run_config(context(**config | {"out": "a/b"})).run_dir == tmp_path / "a" / "b"
        assert read_run_config(context(**config | {"out": "/a/b"})).run_dir.as_posix() == "/a/b"


def test_our_own_scenarios_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = read_run_config(context(scenario="quickstart", out="here"))
    assert scenario_from_json(found.scenario).name == "quickstart"


def test_mistakes(file):
    with pytest.raises(FedsimError, match=r"'quickstrt'.* did you mean"):
        read_run_config(context(scenario="quickstrt"))
    toys.write_scenario(file, **SECTIONS, matrix={"clients.budget_mb": [2, 3]})
    with pytest.raises(FedsimError, match=r"'\./my.yaml' has a matrix.*; use fedsim run"):
        read_run_config(context(scenario="./my.yaml"))
