"""What a Ray cluster must offer before a run begins: an address that answers, a folder that all of
its machines see, and free cores."""

from __future__ import annotations

import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedsim.engine.settings import EngineSettings, max_workers
from fedsim.errors import FedsimError

_REMEDY = "start one with `ray start --head`, or leave the address out to run on this machine"
_CONNECT_SECONDS = 3.0
_SHARED_SECONDS = 120.0  # to start a process there on a cold, slow disk


def check_address(address: str) -> None:
    """Raise `FedsimError` unless something listens there: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or not host or "/" in host:
        raise FedsimError(
            f"Ray address {address!r}: write it as host:port (Ray's own port is 6379) or auto"
        )
    try:
        place = (host.strip("[]"), int(port))
        socket.create_connection(place, timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise FedsimError(f"no Ray cluster answers at {address!r} ({error}): {_REMEDY}") from error


def not_joined(address: str, error: Exception) -> FedsimError:
    """Return what to raise where Ray could not join the cluster at `address`."""
    text = " ".join(str(error).split()).rstrip(".")
    return FedsimError(f"Ray cluster {address!r} cannot be joined: {text}; {_REMEDY}")


def check_shared(folder: Path, runtime_env: dict[str, dict[str, str]]) -> None:
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
            for node in _alive()
        }
        for ref, machine in looks.items():
            if not _answer(ref, machine):
                raise FedsimError(
                    f"machine {machine} of the Ray cluster does not see the folder {folder}: name "
                    "one with --out (fedsim estimate: --scratch) that lies on a disk all of them "
                    "share, under the same path"
                )
    finally:
        proof.unlink()


def _alive() -> list[dict[str, Any]]:
    """Return Ray's description of each machine of the cluster that answers."""
    return [node for node in ray.nodes() if node["Alive"]]


def _answer(ref: ray.ObjectRef, machine: str) -> bool:
    try:
        return ray.get(ref, timeout=_SHARED_SECONDS)
    except (RayError, TimeoutError) as error:
        text = " ".join(str(error).split())
        raise FedsimError(
            f"machine {machine} of the Ray cluster runs no worker: {text:.300}; look at its Ray"
        ) from error


def free_workers(settings: EngineSettings, clients: int) -> int:
    """Return how many workers fit into the free cores, and GPUs if they compute on these, of a
    cluster that others may use too.

    Ray hears of released cores a little later, hence `settings.wait_seconds`. Raises `FedsimError`
    where too few are free by then.
    """
    wanted = min(settings.workers or clients, clients)
    needed = wanted if settings.workers else 1
    deadline = time.monotonic() + settings.wait_seconds
    while True:
        free = ray.available_resources()
        cpus, gpus = int(free.get("CPU", 0)), free.get("GPU", 0.0)
        each = [(n["Resources"].get("CPU", 0), n["Resources"].get("GPU", 0.0)) for n in _alive()]
        # A worker is on one machine: cores left over on two machines are not room for a third.
        fitting = min(
            max_workers(settings, cpus, gpus), sum(max_workers(settings, *of) for of in each)
        )
        if fitting >= needed:
            return min(wanted, fitting)
        if time.monotonic() > deadline:
            free_gpus, of_gpu = "", ""
            if settings.gpu_share:
                free_gpus = f" and {gpus:g} free GPUs"
                of_gpu = f" and 1/{settings.workers_per_gpu} GPU"
            raise FedsimError(
                f"the Ray cluster has {cpus} free cores{free_gpus}, too few for {needed} workers"
                f" of {settings.threads} threads{of_gpu}: ask for fewer workers or threads, or wait"
            )
        time.sleep(0.2)
