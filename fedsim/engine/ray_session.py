"""Start or join Ray, quietly, and give it back as it was found: no process of it outlives a run.

`ray.init` runs in the calling thread, so Ctrl-C interrupts it as it does anything else; whatever
Ray had started by then is found by a mark in its environment, and killed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray

from fedsim.base.accelerators import cuda_cards
from fedsim.base.interrupts import held_back
from fedsim.base.units import count_words
from fedsim.engine.ray_cluster import check_address, check_shared, free_workers, not_joined
from fedsim.engine.settings import QUIET, EngineSettings, cores, environment, max_workers
from fedsim.errors import FedsimError

# Each client needs the same memory again, which glibc would give back and fetch page by page: some
# thirtieth of a worker's time.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
}
# Otherwise `ray.init` waits until Ray has started spare workers, and cannot be interrupted
# meanwhile. The actors start theirs right after it.
_NO_SPARE_WORKERS = {"RAY_prestart_worker_first_driver": "0"}
_MARK = "FEDSIM_RAY_SESSION"
"""Environment variable: what all processes of a Ray that was started here inherit."""
_HELPERS = ("dashboard.py", "log_monitor.py", "monitor.py")
_END_SECONDS = 5.0  # at most: it takes a tenth of a second
_LOOK_SECONDS = 0.05

_inherited: dict[str, str] = {}
"""The environment of the workers of a Ray that was started here."""


@dataclass(frozen=True)
class Capacity:
    """How many workers to start, and Ray's `runtime_env` for each of them."""

    workers: int
    runtime_env: dict[str, dict[str, str]]


@contextmanager
def connected(settings: EngineSettings, clients: int) -> Iterator[Capacity]:
    """Connect to Ray and yield the capacity for workers, no more than there are clients.

    A Ray that is already running in this process is used and left running; one that was started or
    joined here is shut down, also after Ctrl-C.

    Raises:
        FedsimError: Ray cannot start here, the address does not answer, a machine of the cluster
            does not see `settings.shared`, or too few cores are free.
    """
    variables = _variables(settings.threads)
    stated = {"env_vars": variables}
    if ray.is_initialized():
        workers = free_workers(settings, clients)
        yield Capacity(workers, {} if variables == _inherited else stated)
    elif settings.address is not None:
        with _joined(settings.address):
            if settings.shared is not None:
                check_shared(settings.shared, stated)
            yield Capacity(free_workers(settings, clients), stated)
    else:
        gpus = len(cuda_cards()) if settings.gpu_share else None
        workers = min(_local_workers(settings, gpus or 0), clients)
        with _started(variables, workers * settings.threads, gpus):
            yield Capacity(workers, {})


def require_running() -> None:
    """Raise `FedsimError` if Ray has ended under its workers: no client is to blame then."""
    if _inherited:  # Ray was started here, and learns of its own death late
        raylets = [child for child in psutil.Process().children() if child.name() == "raylet"]
        running = any(child.status() != psutil.STATUS_ZOMBIE for child in raylets)
    else:
        running = any(node["Alive"] for node in ray.nodes())
    if not running:
        raise FedsimError(
            "Ray ended in the middle of the run: its process raylet died (out of memory?), and no"
            " client can be asked any more; give it fewer --workers, and continue with fedsim run"
            " --resume and the run folder"
        )


def _local_workers(settings: EngineSettings, gpus: int) -> int:
    """Return how many workers to start here, clients permitting.

    Raises `FedsimError` if more are wanted than the GPUs have room for: Ray would wait for ever.
    """
    if settings.workers is None:
        return max(1, max_workers(settings, max(cores(), settings.threads), gpus))
    room = gpus * settings.workers_per_gpu
    if settings.gpu_share and settings.workers > room:
        raise FedsimError(
            f"engine.workers is {settings.workers}, and {count_words(gpus, 'GPU')} with"
            f" {count_words(settings.workers_per_gpu, 'worker')} each have room for {room}: raise"
            " engine.workers_per_gpu, or ask for fewer workers"
        )
    return settings.workers


def _variables(threads: int) -> dict[str, str]:
    """Return the environment of a worker: this process's import path and the threads.

    Nothing is uploaded, so the machines of a cluster need the same files in the same places.
    """
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    return {**QUIET, **_KEEP_MEMORY, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


@contextmanager
def _started(variables: Mapping[str, str], num_cpus: int, num_gpus: int | None) -> Iterator[None]:
    """Start Ray on this machine with an environment for its workers, and end all of it.

    With `num_gpus` None Ray counts the GPUs itself, and no worker asks for one.
    """
    gpus = {} if num_gpus is None else {"num_gpus": num_gpus}
    mark = secrets.token_hex(8)
    session, ended = None, False
    try:
        # Inherited rather than stated for each worker: Ray starts an agent for what is stated.
        with environment({**variables, **_NO_SPARE_WORKERS, _MARK: mark}):
            try:
                _init(address="local", num_cpus=num_cpus, include_dashboard=False, **gpus)
            except Exception as error:  # Ray raises what its processes happened to die of
                raise _not_started(error) from error
        session = _session_folder()
        _inherited.update(variables)
        _end_helpers()
        yield
        ended = True
    finally:
        with held_back():
            _inherited.clear()
            _end_helpers()
            ray.shutdown()
            _kill_marked(mark)
            if ended and session is not None:  # after an error its logs may tell why
                _remove_session(session)


def _not_started(error: Exception) -> FedsimError:
    text = " ".join(str(error).split()) or type(error).__name__
    return FedsimError(
        f"Ray could not start its processes on this machine ({text:.200}): check free memory and"
        " the space for temporary files, or choose engine inprocess"
    )


def _session_folder() -> Path:
    """Return the folder of the logs and sockets of the Ray to which this process is connected."""
    context = ray.get_runtime_context()
    return Path(context.get_temp_dir()) / context.get_session_name()


def _remove_session(folder: Path) -> None:
    """Remove the folder of a Ray that has ended, and the link to it."""
    shutil.rmtree(folder, ignore_errors=True)
    latest = folder.with_name("session_latest")
    with suppress(OSError):  # another Ray may just be writing its own
        if latest.is_symlink() and not latest.exists():
            latest.unlink()


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """Join a Ray cluster, and leave it."""
    asked = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
    if asked != "auto":
        check_address(asked)
    try:
        try:
            _init(address=asked)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise not_joined(address, error) from error
        yield
    finally:
        with held_back():
            ray.shutdown()


def _init(**options: str | int | bool) -> None:
    """Call `ray.init`, and leave SIGTERM to whoever handled it before.

    Ray's own handler would abort this process at any time; while `ray.init` runs, it raises
    `SystemExit`.
    """
    if threading.current_thread() is not threading.main_thread():
        ray.init(log_to_driver=False, logging_level="ERROR", **options)
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except SystemExit as end:
        if end.code == signal.SIGTERM and callable(before):
            before(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _end_helpers() -> None:
    """End the processes that a run on one machine has no use for: those that serve a dashboard,
    add machines to a cluster and copy logs to the terminal.

    `ray.init` has no option to leave them out, and `ray.shutdown` waits for each.
    """
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has ended by itself
            if any(word.endswith(_HELPERS) and "ray" in word for word in child.cmdline()):
                child.kill()


def _kill_marked(mark: str) -> None:
    """Kill what is left of a Ray, and wait until it has gone.

    Ray kills a raylet that takes more than a second to end, whose agents and workers would go on
    for a while; and after Ctrl-C in the middle of `ray.init` it knows of no process at all.
    """
    deadline = time.monotonic() + _END_SECONDS
    killed: list[psutil.Process] = []
    clear = 0  # looks in a row: one overlooks a process that is just being started
    while clear < 2 and time.monotonic() < deadline:
        left = _marked(mark)
        clear = 0 if left else clear + 1
        for process in left:
            with suppress(psutil.Error):  # another with its number is never killed
                process.kill()
                killed.append(process)
        time.sleep(_LOOK_SECONDS)
    psutil.wait_procs(killed, timeout=0)  # reaps those that are children of this one


def _marked(mark: str) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get(_MARK) == mark
    ]
