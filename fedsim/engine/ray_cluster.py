"""Join or start Ray, quietly, and give it back as it was found."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedsim.engine.settings import EngineSettings, cores
from fedsim.errors import FedsimError

# Ray and Flower read these when they are imported.
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leave a GPU visible to workers that reserve none
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run`, Ray would upload the whole folder
    # An error reply says it in one sentence.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^A worker died|^Task ClientAppActor.run failed",
}
AHEAD = "FEDSIM_CLIENT_APP"
"""Environment variable: the client app, for the processes that Ray starts before any has work."""
# Each client needs the same memory again, which glibc would give back and fetch page by page: some
# thirtieth of a worker's time.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
}
_REMEDY = "start one with `ray start --head`, or leave the address out to run on this machine"
_PROBE_SECONDS = 3.0
_LOOK_SECONDS = 120.0  # to start a process there on a cold, slow disk
_FREE_SECONDS = 10.0  # Ray hears of released cores a little later

_inherited: dict[str, str] = {}
"""The environment of the workers of a Ray that was started here."""

for _name, _value in _QUIET.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402  (reads the variables above)
from ray.exceptions import RayError  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from fedsim.engine.ray_processes import bare_head, shut_down  # noqa: E402


@dataclass(frozen=True)
class Room:
    """How many workers to start, and what to say of their environment when one is started."""

    workers: int
    runtime_env: dict[str, dict[str, str]]


@contextmanager
def connected(settings: EngineSettings, clients: int, app: str) -> Iterator[Room]:
    """Connect to Ray and yield room for workers, no more than there are clients.

    Processes of a Ray that is started here import the client app `app` ("module:attribute") while
    they have nothing else to do. A Ray that is already running in this process is used and left
    running; one that was started or joined here is shut down, also after Ctrl-C. Raises
    `FedsimError` where the address does not answer, a machine of the cluster does not see
    `settings.shared`, or too few cores are free.
    """
    variables = _variables(settings.threads)
    stated = {"env_vars": variables}
    if ray.is_initialized():
        inherited = variables == _inherited
        yield Room(_free_workers(settings, clients), {} if inherited else stated)
        return
    end = shut_down if settings.address is None else ray.shutdown
    try:
        if settings.address is None:
            workers = min(settings.workers or max(1, cores() // settings.threads), clients)
            # Inherited rather than stated: so the processes that Ray starts ahead will do.
            ahead = {AHEAD: app, "RAY_preload_python_modules": "fedsim.engine.ray_ahead"}
            with _environment({**variables, **ahead}), bare_head():
                _init(address="local", num_cpus=workers * settings.threads, include_dashboard=False)
            _inherited.update(variables)
            room = Room(workers, {})
        else:
            _join(settings.address)
            if settings.shared is not None:
                _check_shared(settings.shared, stated)
            room = Room(_free_workers(settings, clients), stated)
        yield room
    finally:
        _inherited.clear()
        end()


def _variables(threads: int) -> dict[str, str]:
    """Return the environment of a worker: this process's import path and the threads.

    Nothing is uploaded, so the machines of a cluster need the same files in the same places.
    """
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    return {**_QUIET, **_KEEP_MEMORY, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Let processes that start while open inherit these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _join(address: str) -> None:
    asked = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
    if asked != "auto":
        _probe(asked)
    try:
        _init(address=asked)
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split()).rstrip(".")
        raise FedsimError(f"Ray cluster {address!r} cannot be joined: {text}; {_REMEDY}") from error


def _check_shared(folder: Path, runtime_env: dict[str, dict[str, str]]) -> None:
    """Raise `FedsimError` for a machine that does not see the files of this one in `folder`.

    A folder of the same name would not do: a file is written here and looked for there.
    """
    proof = folder / f".seen-{secrets.token_hex(8)}"
    look = ray.remote(os.path.exists)
    proof.touch()
    try:
        looks = {
            look.options(
                num_cpus=0,
                runtime_env=runtime_env,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(str(proof)): f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            for node in ray.nodes()
            if node["Alive"]
        }
        for ref, machine in looks.items():
            if not _answer(ref, machine):
                raise FedsimError(
                    f"machine {machine} of the Ray cluster does not see the folder {folder}: name "
                    "one with --out (fedsim estimate: --scratch) that lies on a disk all of them share,"
                    " under the same path"
                )
    finally:
        proof.unlink()


def _answer(ref: ray.ObjectRef, machine: str) -> bool:
    try:
        return ray.get(ref, timeout=_LOOK_SECONDS)
    except (RayError, TimeoutError) as error:
        text = " ".join(str(error).split())
        raise FedsimError(
            f"machine {machine} of the Ray cluster runs no worker: {text:.300}; look at its Ray"
        ) from error


def _init(**options: str | int | bool) -> None:
    on_termination = signal.getsignal(signal.SIGTERM)
    ray.init(log_to_driver=False, logging_level="ERROR", **options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_termination)  # Ray's would abort this process


def _probe(address: str) -> None:
    """Raise `FedsimError` unless something listens there: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or not host or "/" in host:
        raise FedsimError(
            f"Ray address {address!r}: write it as host:port (Ray's own port is 6379) or auto"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise FedsimError(f"no Ray cluster answers at {address!r} ({error}): {_REMEDY}") from error


def _free_workers(settings: EngineSettings, clients: int) -> int:
    """Return how many workers fit into the free cores of a cluster that others may use too."""
    wanted = min(settings.workers or clients, clients)
    least = wanted if settings.workers else 1
    deadline = time.monotonic() + _FREE_SECONDS
    while True:
        free = int(ray.available_resources().get("CPU", 0))
        each = [int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"]]
        # A worker is on one machine: what two machines have left over is no room for a third.
        fitting = min(free // settings.threads, sum(n // settings.threads for n in each))
        if fitting >= least:
            return min(wanted, fitting)
        if time.monotonic() > deadline:
            raise FedsimError(
                f"the Ray cluster has {free} free cores, too few for {least} workers of "
                f"{settings.threads} threads: ask for fewer workers or threads, or wait"
            )
        time.sleep(0.2)
