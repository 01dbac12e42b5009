"""The server app as `flwr run` starts it: alone, with a name in its run config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fedsim_server.app import app
from fedsim_server.flwr_run import check_deployed, run_over, wait_for_nodes
from flwr.app import Context, RecordDict

from fedsim.engine import EngineSettings, open_grid
from fedsim.engine.flower_internals import nodes_by_partition
from fedsim.errors import FedsimError
from fedsim.protocol.run_config import RunConfig
from fedsim.results.folder import RunFolder
from fedsim.runner.single import CLIENT_APP
from fedsim.scenario import load_scenario


@pytest.fixture
def launch(study, tmp_path):
    def launch_(clients) -> Path:
        config = {"scenario": str(study.file), "out": str(tmp_path / "run")}
        with open_grid("inprocess", CLIENT_APP, clients, config, EngineSettings()) as grid:
            context = Context(
                run_id=7, node_id=1, node_config={}, state=RecordDict(), run_config=config
            )
            app(grid, context)
        return tmp_path / "run"

    return launch_


def test_it_does_all_that_fedsim_run_does(study, launch, capsys):
    made = RunFolder(launch(SPEAKERS))
    assert made.results.read_bytes() == study.result.folder.results.read_bytes()
    expected = {path.name for path in study.result.folder.path.iterdir()}
    assert {path.name for path in made.path.iterdir()} == expected
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "method tuned on model MB mean bits WER % clients"
    assert lines[-1] == f"run folder: {made.path}"


SPEAKERS = ["ann", "bob", "cyd", "dee", "eve"]


def test_one_node_plays_one_client(study, tmp_path):
    config = RunConfig(study.scenario.model_dump_json(), tmp_path / "run")
    for clients in (SPEAKERS[:2], [*SPEAKERS, "zoe"]):
        remedy = f"Flower has {len(clients)} SuperNodes; start 5, one per client"
        with (
            open_grid("inprocess", CLIENT_APP, clients, {}, EngineSettings()) as grid,
            pytest.raises(FedsimError, match=remedy),
        ):
            run_over(grid, config, nodes_s=0.2)
        assert not (tmp_path / "run").exists()


def test_nodes_that_register_late_are_waited_for():
    class Late:
        asked = 0

        def get_node_ids(self):
            self.asked += 1
            return range(2 if self.asked < 5 else 3)

        def get_nodes(self):
            return ()

    grid = Late()
    assert wait_for_nodes(grid, ["a", "b", "c"], nodes_s=1.0) == {}
    assert grid.asked == 5


def test_only_flowers_simulation_tells_partitions():
    with open_grid("inprocess", CLIENT_APP, ["a"], {}, EngineSettings()) as grid:
        assert nodes_by_partition(grid) == []


@pytest.mark.parametrize("moments", ["own", "blend"])
def test_a_model_that_stays_on_its_device_is_tested_there_alone(study, moments):
    def tested(whose, on):
        way = {"allocation": "uniform", "rounding": "compensated", "moments": whose}
        return load_scenario(study.file, [f"methods=[{json.dumps(way | {'tuned_on': [on]})}]"])

    check_deployed(tested(moments, "own"))
    check_deployed(tested("public", "other"))
    with pytest.raises(FedsimError, match="use tuned_on: own, or moments: public"):
        check_deployed(tested(moments, "other"))
