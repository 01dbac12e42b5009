"""Finding Ray, joining it, and leaving nothing behind; each test starts its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import MARK, marked

from fedsim.engine import ray_cluster
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
    print("running", flush=True)
    while True:
        grid.pull_messages(ids)
"""


@pytest.mark.parametrize("engine", ["ray", pytest.param("flower", marks=pytest.mark.slow)])
def test_ctrl_c_leaves_no_process(tmp_path, engine):
    """In a process group of its own, as from a shell: Ctrl-C reaches all of it."""
    folder = Path(__file__).parent
    environment = {"PYTHONPATH": f"{folder}:{folder.parents[1]}", MARK: str(tmp_path)}
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, engine],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout.readline() == "running\n"
    os.killpg(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    assert marked(str(tmp_path)) == {}
