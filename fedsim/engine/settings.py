"""How an engine is to run: the same few settings for every engine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedsim.base.accelerators import CPU, CUDA, MPS
from fedsim.base.imports import importing
from fedsim.errors import FedsimError

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leave a GPU visible to workers that reserve none
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run`, Ray would upload the whole folder
    # An error reply says it in one sentence.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^A worker died|^Task ClientAppActor.run failed",
}
"""Environment variables that Flower and Ray read when they are imported."""
INTERRUPTIBLE = {"RAY_raylet_start_wait_time_s": "0"}
"""Likewise, but for this process alone: a worker of Ray that inherited it would not start.

`ray.init` looks for its raylet all the time, not once a second, in which Ctrl-C would have to wait.
"""


@dataclass(frozen=True)
class EngineSettings:
    """Settings of an engine; none but `threads` and `device` changes a result.

    `workers`: client processes; None starts one for every `threads` cores.
    `threads`: torch threads in each worker. Fixed rather than derived from the cores, because
    sums taken in another order differ in the last bit.
    `address`: the Ray cluster to join, "host:port" or "auto"; None starts Ray on this machine.
    `batch`: messages in one call to a worker; None chooses by how many wait and how long one takes.
    `shared`: a folder that every machine of a joined cluster must see, which is checked first.
    `wait_seconds`: how long to wait for free cores of a Ray that is running already.
    `device`: what the clients compute on, as `fedsim.base.accelerators.find_device` returns it.
    `workers_per_gpu`: client processes that share a GPU.
    `group`: neighbouring clients that prefer the same worker, as they share forward passes.

    Raises `FedsimError` where a number is below one.
    """

    workers: int | None = None
    threads: int = 1
    address: str | None = None
    batch: int | None = None
    shared: Path | None = None
    wait_seconds: float = 10.0
    device: str = CPU
    workers_per_gpu: int = 1
    group: int = 1

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "batch", "workers_per_gpu", "group"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise FedsimError(f"{name} is {value}: give at least 1, or leave it out")

    @property
    def gpu_share(self) -> float:
        """The part of a GPU that Ray reserves for a worker; 0 where it knows no GPU."""
        # Ray counts in ten thousandths, and would round 1/6 up.
        share = 10_000 // self.workers_per_gpu / 10_000
        return share if self.device.startswith(CUDA) else 0.0

    @property
    def memory_share(self) -> float | None:
        """The part of a GPU's memory that a worker may take; None where it has one to itself.

        Fixed rather than what its neighbours leave: whether a batch fits must not depend on them.
        The server, which computes in the process that starts the workers, counts as a neighbour.
        """
        shared = self.device.startswith(CUDA) and self.workers_per_gpu > 1
        return 1 / (self.workers_per_gpu + 1) if shared else None


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while open, for what is imported and which processes start then."""
    before = {name: os.environ.get(name) for name in variables}
    try:
        os.environ.update(variables)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Compute with that many torch threads in this process while open.

    Also where the workers are other processes: the server app packs weights in this one.
    """
    with importing():
        import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def max_workers(settings: EngineSettings, cpus: float, gpus: float) -> int:
    """Return how many workers fit into cores and, where they compute on GPUs, into these.

    `gpus` may be a fraction, of a GPU that others share.
    """
    fitting = int(cpus) // settings.threads
    if settings.gpu_share:
        return min(fitting, int(gpus * settings.workers_per_gpu + 1e-3))
    return min(fitting, settings.workers_per_gpu) if settings.device == MPS else fitting


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: honours taskset and cpusets
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
