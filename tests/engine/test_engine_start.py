"""Finding Ray, joining it, and leaving nothing behind; each test starts its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import MARK, foreground, marked

from fedsim.engine import ray_cluster
from fedsim.engine.ray_start import aside
from fedsim.errors import FedsimError


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "[::1]:1"])
def test_an_address_where_nothing_answers(address):
    with pytest.raises(FedsimError, match=r"no Ray cluster answers at .*ray start --head"):
        ray_cluster._probe(address)


@pytest.mark.parametrize("address", ["host", "ray://host:10001", ":6379", "host:port"])
def test_an_address_of_the_wrong_form(address):
    with pytest.raises(FedsimError, match=r"write it as host:port .* or auto"):
        ray_cluster._probe(address)


def test_in_process_joins_no_cluster(opened):
    reason = "engine inprocess joins no Ray cluster: leave the address 'auto' out"
    with pytest.raises(FedsimError, match=reason), opened("inprocess", address="auto"):
        pass


INTERRUPTED = """
import sys
from fedsim.engine import EngineSettings, open_grid
from engine_asks import ask
config = {"word": "", "folder": ""}
settings = EngineSettings(workers=2)
with open_grid(sys.argv[1], "engine_toys:app", ["a", "b"], config, settings) as grid:
    ids = grid.push_messages(ask(node, "query.process", 60.0) for node in grid.get_node_ids())
    print("ready", flush=True)
    while True:
        grid.pull_messages(ids)
"""


def interrupt(program: str, *arguments: str, seconds: float, mark: str) -> None:
    """Stop a program by Ctrl-C so long after its first line, and see that nothing of it is left."""
    folder = Path(__file__).parent
    words = [sys.executable, "-c", program, *arguments]
    with foreground(words, mark, PYTHONPATH=f"{folder}:{folder.parents[1]}") as child:
        assert child.stdout.readline() == "ready\n"
        time.sleep(seconds)
        os.killpg(child.pid, signal.SIGINT)
        _, errors = child.communicate(timeout=30)
        assert "KeyboardInterrupt" in errors
        assert child.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
        assert marked(mark) == {}


@pytest.mark.parametrize("engine", ["ray", pytest.param("flower", marks=pytest.mark.slow)])
def test_ctrl_c_leaves_no_process(tmp_path, engine):
    interrupt(INTERRUPTED, engine, seconds=0.0, mark=str(tmp_path))


STARTING = """
import sys, time
from fedsim.engine import EngineSettings, open_grid
settings = EngineSettings(workers=2)
with open_grid("ray", "engine_toys:app", ["a", "b"], {"word": "", "folder": ""}, settings) as grid:
    print("ready", flush=True)
    grid.get_node_ids()
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "seconds", [0.5, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.0, 0.3, 0.7, 1.2, 3.0))]
)
def test_ctrl_c_while_ray_starts_leaves_no_process(tmp_path, seconds):
    """The moments differ in what there is: no process yet, a raylet, a driver that connects."""
    interrupt(STARTING, seconds=seconds, mark=str(tmp_path))


KILLED = """
import ray, psutil
from ray._private.node import Node
from fedsim.engine import EngineSettings
from fedsim.engine.ray_cluster import connected

def kill(self, *, allow_graceful, **options):
    end(self, allow_graceful=False, **options)

end, Node.kill_all_processes = Node.kill_all_processes, kill
with connected(EngineSettings(workers=1), 1, "engine_toys:app"):
    for name in sorted(child.name() for child in psutil.Process().children()):
        print(name)
"""


def test_ray_starts_two_processes_and_nothing_is_left_of_a_raylet_that_is_killed(tmp_path):
    """As Ray does with one that takes more than a second to end; its agents would go on."""
    environment = {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[2]}"}
    run = subprocess.run(
        [sys.executable, "-c", KILLED],
        env={**os.environ, **environment, MARK: str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert marked(str(tmp_path), 0.2) == {}
    assert run.stdout.split() == ["gcs_server", "raylet"]


def test_a_context_aside_is_opened_and_closed_by_one_thread():
    seen = []

    @contextmanager
    def opened():
        seen.append(threading.get_ident())
        try:
            yield ["worker"]
        finally:
            seen.append(threading.get_ident())

    with aside(opened) as thread:
        assert thread.result() == ["worker"]
        assert len(seen) == 1
    assert len(seen) == 2
    assert seen[0] == seen[1] != threading.get_ident()


def test_what_opening_aside_raises_is_raised_where_it_is_asked_for():
    @contextmanager
    def opened():
        raise FedsimError("no room")
        yield

    with pytest.raises(FedsimError, match="no room"), aside(opened) as thread:
        thread.result()
    with aside(opened):
        pass  # nobody asked


def test_ctrl_c_does_not_wait_for_what_is_being_opened_and_the_next_one_does():
    go, seen = threading.Event(), []

    @contextmanager
    def slow():
        go.wait()
        yield []
        seen.append("closed")

    @contextmanager
    def quick():
        seen.append("opened")
        yield []

    with pytest.raises(KeyboardInterrupt), aside(slow):
        raise KeyboardInterrupt
    assert seen == []
    threading.Timer(0.2, go.set).start()
    with aside(quick) as thread:
        thread.result()
    assert seen == ["closed", "opened"]
