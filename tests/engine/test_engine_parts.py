"""The parts that need neither Ray nor a client."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from engine_asks import ask, said

from fedsim.engine import ENGINES, EngineSettings, nodes
from fedsim.engine.grid import Job
from fedsim.engine.schedule import LARGEST_BATCH, Schedule
from fedsim.engine.settings import max_workers
from fedsim.errors import FedsimError


def test_listing_the_engines_imports_nothing_heavy():
    code = (
        "import sys, fedsim.engine as e; assert set(e.ENGINES.describe()) >= {'inprocess', 'ray'};"
        "print([m for m in ('flwr', 'ray', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert all(ENGINES.describe().values())


def test_node_ids_are_the_same_in_every_run():
    assert nodes.node_id("user-00") == 809347755319425157
    ids = [nodes.node_id(f"user-{i}") for i in range(1000)]
    assert len(set(ids)) == 1000
    assert all(1 < i < 2**63 for i in ids)


def test_clients_that_share_an_id_are_refused():
    with pytest.raises(FedsimError, match=r"'a' \(place 0\) and 'a' \(place 2\)"):
        nodes.nodes_of(["a", "b", "a"])
    with pytest.raises(FedsimError, match="a key of its own"):
        nodes.nodes_of(["a", "b"], id_of=lambda client: 5)
    with pytest.raises(FedsimError, match="no clients"):
        nodes.nodes_of([])


@pytest.mark.parametrize("name", ["workers", "threads", "batch", "workers_per_gpu"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(FedsimError, match=f"{name} is 0: give at least 1"):
        EngineSettings(**{name: 0})


def test_in_process_gives_the_torch_threads_back(opened):
    before = torch.get_num_threads()
    with opened("inprocess", threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_message_to_a_stranger_is_refused(opened):
    with opened("inprocess") as grid, pytest.raises(FedsimError, match="there is no node 7"):
        grid.push_messages([ask(7, "query.echo")])


@pytest.mark.parametrize(
    ("app", "reason"),
    [
        ("engine_toys", "write it as 'package.module:attribute'"),
        ("no_such_module:app", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("engine_toys:no_such_app", "AttributeError: .* has no attribute 'no_such_app'"),
        ("engine_toys:not_an_app", "is a str, not a ClientApp"),
    ],
)
def test_an_app_that_cannot_be_loaded(opened, app, reason):
    with pytest.raises(FedsimError, match=reason), opened("inprocess", app=app):
        pass


def test_in_process_replies_come_one_a_pull(opened):
    with opened("inprocess") as grid:
        ids = list(grid.push_messages(ask(n, "query.echo") for n in grid.get_node_ids()))
        pulls = [grid.pull_messages(ids) for _ in range(21)]
        assert [len(pull) for pull in pulls] == [1] * 20 + [0]


def test_a_pull_of_a_later_message_keeps_the_order_of_its_client(opened):
    with opened("inprocess") as grid:
        node = grid.get_node_ids()[0]
        first, second = grid.push_messages([ask(node, "train.count", i) for i in (0, 1)])
        assert said(grid.pull_messages([second])[0]) == {"seen": 2, "value": 1}
        assert said(grid.pull_messages([second, first])[0]) == {"seen": 1, "value": 0}
        assert grid.pull_messages([second, first]) == []


def jobs(count: int, first: int = 0) -> list[Job]:
    return [Job(f"{node}", node, b"") for node in range(first, first + count)]


def filled(count: int, workers: int = 2, seconds: float = 1e-4, batch=None) -> Schedule:
    schedule = Schedule(workers, batch)
    schedule.took(seconds, 1)
    for job in jobs(count):
        schedule.add(job)
    return schedule


@pytest.mark.parametrize(("waiting", "size"), [(10, 1), (200, 12), (5000, LARGEST_BATCH)])
def test_batches_grow_with_what_waits(waiting, size):
    assert len(filled(waiting).take(0, steal=True)) == size


def test_slow_messages_travel_alone():
    assert len(filled(5000, seconds=1.0).take(0, steal=True)) == 1
    assert len(filled(5000, seconds=1.0, batch=7).take(0, steal=True)) == 7


def test_a_node_has_one_message_under_way():
    schedule = Schedule(1, batch=10)
    first, second = Job("a", 5, b""), Job("b", 5, b"")
    schedule.add(first)
    schedule.add(second)
    assert schedule.take(0, steal=True) == [first]
    assert schedule.take(0, steal=True) == []
    schedule.done(first)
    assert schedule.take(0, steal=True) == [second]


def test_only_an_idle_worker_steals_and_then_keeps_the_client():
    schedule = Schedule(2, batch=1)
    job = jobs(1)[0]
    schedule.add(job)
    assert schedule.take(0, steal=True) == [job]
    schedule.done(job)
    schedule.add(job)
    assert schedule.take(1, steal=False) == []
    assert schedule.take(1, steal=True) == [job]
    schedule.done(job)
    schedule.add(job)
    assert schedule.take(0, steal=False) == []
    assert schedule.take(1, steal=False) == [job]


def test_a_group_keeps_to_the_worker_that_began_with_it():
    """Two nodes a group: the worker of the first also takes the second, which nobody steals."""
    schedule = Schedule(2, batch=1, group_of=lambda node: node // 2)
    first, second, third, fourth = jobs(4)
    for job in (first, second, third, fourth):
        schedule.add(job)
    assert schedule.take(0, steal=True) == [first]
    assert schedule.take(1, steal=True) == [third]
    assert schedule.take(1, steal=True) == [fourth]
    assert schedule.take(1, steal=True) == []
    assert schedule.take(0, steal=True) == [second]


def test_messages_of_a_lost_batch_are_tried_one_at_a_time():
    schedule = filled(8, batch=4)
    batch = schedule.take(0, steal=True)
    for job in batch:
        schedule.retry(job, alone=True)
    assert [len(schedule.take(1, steal=True)) for _ in range(5)] == [1, 1, 1, 1, 4]


def test_workers_that_share_a_gpu_fit_onto_it():
    """Ray counts in ten thousandths: the shares of a GPU's workers never add up to more than it."""
    for n in range(1, 65):
        share = EngineSettings(device="cuda", workers_per_gpu=n).gpu_share
        assert 0 < n * round(share * 10_000) <= 10_000
    assert EngineSettings(workers_per_gpu=4).gpu_share == 0
    assert EngineSettings(device="mps", workers_per_gpu=4).gpu_share == 0


def test_what_a_worker_may_take_of_a_gpus_memory():
    """All of it alone; else equal parts, one of which is left to the server."""
    assert EngineSettings(device="cuda").memory_share is None
    assert EngineSettings(device="cuda", workers_per_gpu=3).memory_share == 1 / 4
    assert EngineSettings(device="cpu", workers_per_gpu=3).memory_share is None


@pytest.mark.parametrize(
    ("settings", "cpus", "gpus", "workers"),
    [
        ({}, 16, 0, 16),
        ({"threads": 3}, 16, 8, 5),
        ({"device": "cuda"}, 16, 2, 2),
        ({"device": "cuda", "workers_per_gpu": 4}, 16, 2, 8),
        ({"device": "cuda", "workers_per_gpu": 4}, 6, 2, 6),
        ({"device": "cuda", "workers_per_gpu": 3}, 16, 0.6667, 2),
        ({"device": "cuda", "workers_per_gpu": 3}, 16, 0.6, 1),
        ({"device": "cuda"}, 16, 0, 0),
        ({"device": "mps"}, 16, 0, 1),
    ],
)
def test_workers_that_fit_into_cores_and_gpus(settings, cpus, gpus, workers):
    assert max_workers(EngineSettings(**settings), cpus, gpus) == workers
