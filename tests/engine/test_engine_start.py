"""Finding Ray, joining it, and leaving nothing behind; each test starts its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import MARK, foreground, marked

from fedsim.engine.ray_cluster import check_address
from fedsim.errors import FedsimError


def test_an_address_where_nothing_answers():
    for address in ("127.0.0.1:1", "nowhere.invalid:6379", "[::1]:1"):
        with pytest.raises(FedsimError, match="ray start --head"):
            check_address(address)


def test_an_address_of_the_wrong_form():
    for address in ("host", "ray://host:10001", ":6379", "host:port"):
        with pytest.raises(FedsimError, match=r"write it as host:port .* or auto"):
            check_address(address)


def test_in_process_joins_no_cluster(opened):
    with pytest.raises(FedsimError, match="choose engine ray"), opened("inprocess", address="auto"):
        pass


AT_WORK = """
import sys
from fedsim.engine import EngineSettings, open_grid
from engine_asks import ask
config = {"word": "", "folder": ""}
settings = EngineSettings(workers=2)
with open_grid("ray", "engine_toys:app", ["a", "b"], config, settings) as grid:
    ids = grid.push_messages(ask(node, "query.process", 60.0) for node in grid.get_node_ids())
    print("ready", flush=True)
    while True:
        grid.pull_messages(ids)
"""
STARTING = """
import sys, time
from fedsim.engine import EngineSettings, open_grid
settings = EngineSettings(workers=2)
print("ready", flush=True)
with open_grid("ray", "engine_toys:app", ["a", "b"], {"word": "", "folder": ""}, settings) as grid:
    grid.get_node_ids()
    time.sleep(60)
"""


def environment() -> dict[str, str]:
    folder = Path(__file__).parent
    return {"PYTHONPATH": f"{folder}:{folder.parents[1]}"}


def interrupt(program: str, seconds: float, mark: str) -> None:
    """Stop a program by Ctrl-C so long after its first line, and see that nothing of it is left."""
    with foreground([sys.executable, "-c", program], mark, **environment()) as child:
        assert child.stdout.readline() == "ready\n"
        time.sleep(seconds)
        os.killpg(child.pid, signal.SIGINT)
        _, errors = child.communicate(timeout=30)
        assert marked(mark, seconds=0.5) == {}
        assert "KeyboardInterrupt" in errors
        assert child.returncode in (-signal.SIGINT, 128 + signal.SIGINT)


@pytest.mark.slow
def test_ctrl_c_leaves_no_process(tmp_path):
    interrupt(AT_WORK, seconds=0.0, mark=str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0])
def test_ctrl_c_while_ray_starts_leaves_no_process(tmp_path, seconds):
    """The moments differ in what there is: no process yet, a raylet, actors that import."""
    interrupt(STARTING, seconds, mark=str(tmp_path))


KILLED = """
from fedsim.engine import EngineSettings, kept_running
with kept_running("ray", 1, EngineSettings(workers=1)):
    import psutil

    for child in psutil.Process().children():
        if child.name() == "raylet":
            child.kill()
            print("killed")
"""


def test_nothing_is_left_of_a_raylet_that_was_killed(tmp_path):
    """Its agents would go on for a while. Ray itself kills one that ends slowly."""
    run = subprocess.run(
        [sys.executable, "-c", KILLED],
        env={**os.environ, **environment(), MARK: str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert marked(str(tmp_path), seconds=0.2) == {}
    assert run.stdout.startswith("killed\n"), run.stderr


ENDED = """
import psutil
from fedsim.engine import EngineSettings, open_grid
from fedsim.errors import FedsimError
from engine_asks import ask
settings = EngineSettings(workers=1)
with open_grid("ray", "engine_toys:app", ["a", "b"], {"word": "", "folder": ""}, settings) as grid:
    ids = grid.push_messages(ask(node, "query.process", 60.0) for node in grid.get_node_ids())
    for child in psutil.Process().children():
        if child.name() == "raylet":
            child.kill()
    try:
        while True:
            assert not grid.pull_messages(ids), "a client was blamed"
    except FedsimError as error:
        print(f"refused: {error}")
"""


@pytest.mark.slow
def test_where_ray_ends_in_the_middle_no_client_is_blamed(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", ENDED],
        env={**os.environ, **environment(), MARK: str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    (words,) = [line for line in run.stdout.splitlines() if line.startswith("refused: ")]
    assert "Ray ended in the middle of the run" in words
    assert "fedsim run --resume" in words
    assert run.returncode == 0, run.stderr
    assert marked(str(tmp_path), seconds=0.2) == {}


SESSION = """
from pathlib import Path
from fedsim.engine import EngineSettings, kept_running
with kept_running("ray", 1, EngineSettings(workers=1)):
    import ray

    context = ray.get_runtime_context()
    folder = Path(context.get_temp_dir()) / context.get_session_name()
    assert folder.is_dir()
print(folder, folder.exists())
"""


@pytest.mark.slow
def test_a_normal_end_leaves_no_session_folder(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", SESSION],
        env={**os.environ, **environment()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout.endswith(" False\n"), run.stderr


DYING = """
import sys, threading, time
import psutil
from fedsim.engine import EngineSettings, kept_running
from fedsim.errors import FedsimError

def kill():
    while True:
        for child in psutil.Process().children():
            if "gcs_server" in child.name():
                return child.kill()
        time.sleep(0.01)

threading.Thread(target=kill, daemon=True).start()
try:
    with kept_running("ray", 1, EngineSettings(workers=1)):
        pass
except FedsimError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_process_of_ray_that_dies_at_the_start_is_one_sentence(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", DYING],
        env={**os.environ, **environment(), MARK: str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert run.stdout.startswith("Ray could not start its processes on this machine (")
    assert run.stdout.count("\n") == 1
    assert marked(str(tmp_path), seconds=0.5) == {}
