"""The commands of docs/deployment.md, run as they stand: Flower's own processes on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paper
import pytest
import toys
from processes import MARK, marked

from fedsim.results.ledger import Ledger
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
GUIDE = (REPOSITORY / "docs/deployment.md").read_text()
BUDGETS = {"ann": 0.0334, "bob": 0.0302}


def block(heading: str, language: str = "sh") -> str:
    """The first block of code in that language below a heading of the guide."""
    _, _, text = GUIDE.partition(f"# {heading}\n")
    found = re.search(rf"^```{language}\n(.+?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]


def free_ports(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture
def shell(tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a command of the guide; what it and its children started ends with the test."""
    python = Path(sys.executable).parent
    home = tmp_path / "flower"
    home.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{python}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "KEYS": str(tmp_path / "keys"),
        "COLUMNS": "200",
        MARK: str(tmp_path),
    }

    def start(command: str, cwd: Path, log: str = "log", **more: str) -> subprocess.Popen:
        with (tmp_path / log).open("w") as file:
            return subprocess.Popen(
                ["bash", "-ec", command],
                cwd=cwd,
                env={**environment, **more},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    yield start
    for stop in (signal.SIGTERM, signal.SIGKILL):
        for process in marked(str(tmp_path), seconds=0):
            os.kill(process, stop)
        if not marked(str(tmp_path)):
            break
    assert marked(str(tmp_path), seconds=0) == {}


@pytest.fixture
def finished(shell, tmp_path) -> Callable[..., str]:
    """Run a command of the guide to its end and return what it printed."""

    def run(command: str, cwd: Path, **more: str) -> str:
        code = shell(command, cwd, "finished.log", **more).wait(timeout=150)
        printed = (tmp_path / "finished.log").read_text()
        assert code == 0, printed
        return printed

    return run


@pytest.fixture
def write_study(model_folder) -> Callable[..., Path]:
    def write(folder: Path) -> Path:
        folder.mkdir()
        return toys.write_scenario(
            folder / "study.yaml",
            model={"id": str(model_folder("ctc-group")), "batch_size": 4},
            corpus={"path": "clips", "group_by": "speaker", "tuning_clips": 3, "test_clips": 3},
            clients={"budget_mb": BUDGETS},
            quantization=paper.QUANTIZATION,
            methods=["fp32", {"allocation": "myqasr", "tuned_on": ["own", "other"]}],
        )

    return write


def test_flwr_run_in_simulation(finished, write_study, tmp_path):
    """From the repository; then, with a client that fails, from a folder without it."""
    file = write_study(tmp_path / "place")
    clips = toys.write_corpus(file.parent / "clips", list(BUDGETS))
    port = {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": free_ports(1)[0]}
    command = block("`flwr run`").replace("num-supernodes=16", "num-supernodes=2")
    command = command.replace('"quickstart"', f'"{file}" out="{tmp_path}/run"')
    printed = finished(command, REPOSITORY, **port)
    assert f"run folder: {tmp_path}/run" in printed, printed
    expected = run_scenario(load_scenario(file), tmp_path / "expected").folder.results
    assert (tmp_path / "run/results.parquet").read_bytes() == expected.read_bytes()

    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "pyproject.toml").write_text(block("`flwr run`", "toml"))
    shutil.rmtree(clips / "bob")
    printed = finished(command.replace(f"{tmp_path}/run", f"{tmp_path}/second"), bare, **port)
    assert f"run folder: {tmp_path}/second" in printed, printed
    with Ledger(tmp_path / "second/ledger.sqlite") as ledger:
        failures = {failure.client: failure for failure in ledger.failures()}
        assert {row.client for row in ledger.rows()} == {"ann"}
    assert failures["bob"].stage == "sense"
    assert failures["bob"].reason.startswith("client 'bob': tuning clip ")

    command = command.replace("num-supernodes=2", "num-supernodes=3")
    printed = finished(command.replace(f"{tmp_path}/run", f"{tmp_path}/third"), bare, **port)
    assert "start 2, one per client" in printed
    assert not (tmp_path / "third").exists()


@pytest.mark.skipif(
    not (shutil.which("openssl") and shutil.which("ssh-keygen")),
    reason="the guide makes keys with openssl and ssh-keygen",
)
def test_a_deployment_with_tls_and_authenticated_devices(shell, finished, write_study, tmp_path):
    """Each device sees its own clips, and the server no clip at all until the run is over."""
    keys, server = tmp_path / "keys", tmp_path / "server"
    keys.mkdir()
    study = write_study(server)
    toys.write_corpus(tmp_path / "all", list(BUDGETS))
    (server / "clips").mkdir()
    shutil.copy(tmp_path / "all/metadata.csv", server / "clips")
    lines = (tmp_path / "all/metadata.csv").read_text().splitlines(keepends=True)
    for client in BUDGETS:
        write_study(tmp_path / client)
        shutil.copytree(tmp_path / "all" / client, tmp_path / client / "clips" / client)
        own = [line for line in lines if line.startswith(("file_name", client))]
        (tmp_path / client / "clips/metadata.csv").write_text("".join(own))

    at, *ports = free_ports(4)  # the SuperLink's, two devices', a stranger's
    finished(block("1. Certificates and keys"), tmp_path)
    connection = block("3. Registering the devices", "toml").replace("8000", at)
    connection = connection.replace("/path/to/keys", str(keys))
    (tmp_path / "flower/config.toml").write_text(connection)
    shell(block("2. The SuperLink").replace("8000", at), server)
    _wait_for(at)
    finished(block("3. Registering the devices"), tmp_path)
    start = block("4. The SuperNodes").replace("8000", at)
    for client, port in zip(BUDGETS, ports, strict=False):
        shell(start.replace("ann", client).replace("9094", port), tmp_path / client)
    finished('ssh-keygen -q -t ecdsa -b 384 -N "" -f "$KEYS/eve"', tmp_path)
    pretend = start.replace("/ann", "/eve").replace("9094", ports[2])
    stranger = shell(pretend, tmp_path / "ann", "eve.log")

    def online() -> int:
        listed = finished("flwr supernode list home --format json", tmp_path)
        return sum(n["status"] == "online" for n in json.loads(listed)["nodes"])

    deadline = time.monotonic() + 60
    while online() < len(BUDGETS) and time.monotonic() < deadline:
        time.sleep(1)
    assert online() == len(BUDGETS)  # and the stranger is not among them
    printed = finished(block("5. The run"), REPOSITORY)
    assert f"run folder: {server}/run" in printed, printed
    assert stranger.wait(timeout=60) != 0
    assert "Failed to activate SuperNode" in (tmp_path / "eve.log").read_text()

    for client in BUDGETS:
        shutil.copytree(tmp_path / "all" / client, server / "clips" / client)
    expected = run_scenario(load_scenario(study), tmp_path / "expected").folder.results
    assert (server / "run/results.parquet").read_bytes() == expected.read_bytes()
    assert not (server / "run/bank").exists()
    for client in BUDGETS:  # the layers came to each device's own folder
        assert any((tmp_path / client / "run/bank").iterdir())


def _wait_for(port: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", int(port)), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the SuperLink does not come up"
            time.sleep(0.5)
