"""What a Ray cluster must offer before a run begins: an address that answers, a folder that all of
its machines see, and free cores."""

from __future__ import annotations

import os
import secrets
import socket
import time
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedsim.engine.settings import EngineSettings
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
            for node in ray.nodes()
            if node["Alive"]
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


def _answer(ref: ray.ObjectRef, machine: str) -> bool:
    try:
        return ray.get(ref, timeout=_SHARED_SECONDS)
    except (RayError, TimeoutError) as error:
        text = " ".join(str(error).split())
        raise FedsimError(
            f"machine {machine} of the Ray cluster runs no worker: {text:.300}; look at its Ray"
        ) from error


def free_workers(settings: EngineSettings, clients: int) -> int:
    """Return how many workers fit into the free cores of a cluster that others may use too.

    Ray hears of released cores a little later, hence `settings.wait_seconds`. Raises `FedsimError`
    where too few are free by then.
    """
    wanted = min(settings.workers or clients, clients)
    needed = wanted if settings.workers else 1
    deadline = time.monotonic() + settings.wait_seconds
    while True:
        free = int(ray.available_resources().get("CPU", 0))
        each = [int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"]]
        # A worker is on one machine: cores left over on two machines are not room for a third.
        fitting = min(free // settings.threads, sum(n // settings.threads for n in each))
        if fitting >= needed:
            return min(wanted, fitting)
        if time.monotonic() > deadline:
            raise FedsimError(
                f"the Ray cluster has {free} free cores, too few for {needed} workers of "
                f"{settings.threads} threads: ask for fewer workers or threads, or wait"
            )
        time.sleep(0.2)
