"""How an engine is to run: the same few settings for every engine."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fedsim.errors import FedsimError


@dataclass(frozen=True)
class EngineSettings:
    """Settings of an engine; none of them changes a result.

    `workers`: client processes; None starts one for every `threads` cores.
    `threads`: torch threads in each worker. Fixed rather than derived from the cores, because
    sums taken in another order differ in the last bit.
    `address`: the Ray cluster to join, "host:port" or "auto"; None starts Ray on this machine.
    `batch`: messages in one call to a worker; None chooses by how many wait and how long one takes.

    Raises `FedsimError` where a number is below one.
    """

    workers: int | None = None
    threads: int = 1
    address: str | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise FedsimError(f"{name} is {value}: give at least 1, or leave it out")


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: honours taskset and cpusets
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
