"""A Ray cluster of two raylets: joined, used on both, left running; and what it must share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engine_asks import CLIENTS, ask, ask_all, said

from fedsim.engine import EngineSettings, open_grid
from fedsim.errors import FedsimError
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """The working folders of the two raylets."""
    return tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")


@pytest.fixture(scope="module")
def cluster(folders) -> Iterator[Cluster]:
    """Two raylets with two cores each."""
    with open_grid("inprocess", "engine_toys:app", CLIENTS, {}, EngineSettings()):
        pass  # any engine sets what Ray reads when it is imported
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    with pytest.MonkeyPatch.context() as patch:
        for folder in folders:
            patch.chdir(folder)
            cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture
def address(cluster) -> str:
    return cluster.address


def machines(replies) -> set[str]:
    return {said(reply)["raylet"] for reply in replies}


def test_workers_are_on_both_machines(opened, address):
    import ray

    with opened("ray", address=address, workers=2) as grid:
        assert len(machines(ask_all(grid, "query.machine"))) == 2
        assert [said(reply)["client"] for reply in ask_all(grid, "query.echo")] == CLIENTS
    assert not ray.is_initialized()


def test_as_many_workers_as_the_cluster_has_cores(opened, address):
    with opened("ray", address=address) as grid:
        pids = {said(r)["pid"] for r in ask_all(grid, "query.process", [0.3] * 20)}
        assert len(pids) == 4


def test_a_worker_does_not_straddle_machines(opened, address):
    """Four cores are free, but three in a row nowhere."""
    settings = {"threads": 3, "wait_seconds": 3.0}  # the test before has just let them go
    reason = "4 free cores, too few for 1 workers of 3 threads"
    with pytest.raises(FedsimError, match=reason), opened("ray", address=address, **settings):
        pass


def test_a_folder_that_one_machine_does_not_see(opened, address, folders, monkeypatch):
    """A path that begins in each process's own working folder: there in the first alone."""
    monkeypatch.chdir(folders[0])
    (folders[0] / "run").mkdir()
    here = Path("/proc/self/cwd/run")
    with (
        pytest.raises(FedsimError, match=r"machine \S+ \(\S+\) of the Ray cluster does not see"),
        opened("ray", address=address, workers=2, shared=here),
    ):
        pass
    (folders[1] / "run").mkdir()  # of the same name, but another one
    with (
        pytest.raises(FedsimError, match=r"the folder /proc/self/cwd/run: name one with --out"),
        opened("ray", address=address, workers=2, shared=here),
    ):
        pass
    assert os.listdir(folders[0] / "run") == []
    with opened("ray", address=address, workers=2, shared=folders[0] / "run") as grid:
        assert len(ask_all(grid, "query.echo")) == len(CLIENTS)


def test_a_run_on_a_cluster_gives_the_same_results_to_the_byte(study, address, tmp_path):
    overrides = ["engine.kind=ray", f"engine.address='{address}'", "save_models=false"]
    result = run_scenario(load_scenario(study.file, overrides), tmp_path / "run")
    assert result.failures == []
    expected = load_scenario(study.file, ["save_models=false"])
    inprocess = run_scenario(expected, tmp_path / "inprocess")
    assert result.folder.results.read_bytes() == inprocess.folder.results.read_bytes()


def test_a_machine_that_goes_away_takes_no_client_with_it(opened, cluster, folders, monkeypatch):
    with opened("ray", address=cluster.address, workers=2) as grid:
        (last,) = machines(ask_all(grid, "query.machine")) - {cluster.head_node.node_id}
        assert last == cluster.worker_nodes.copy().pop().node_id
        ids = set(grid.push_messages(ask(n, "query.process", 0.3) for n in grid.get_node_ids()))
        cluster.remove_node(cluster.worker_nodes.copy().pop())
        replies = []
        while len(replies) < len(ids):
            replies += grid.pull_messages(ids)
        assert [reply for reply in replies if reply.has_error()] == []
        assert machines(ask_all(grid, "query.machine")) == {cluster.head_node.node_id}
    monkeypatch.chdir(folders[1])
    cluster.add_node(num_cpus=2)  # as the other tests expect it
    cluster.wait_for_nodes()
