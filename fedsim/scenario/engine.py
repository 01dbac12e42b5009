"""What carries messages to the clients, as a scenario says it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedsim.engine import ENGINES
from fedsim.scenario.settings import OneOf, Settings, Text

MAX_WORKERS = 1_024
"""Worker processes, and threads of one."""
MAX_GROUP = 32
"""Clients that share forward passes at most where nobody says how many: with four clips each, that
fills a large GPU."""
AUTO = "auto"
ENGINE = OneOf(ENGINES, {AUTO: "In this process where that ends sooner than Ray starts, else Ray."})


class EngineChoice(Settings):
    """What carries messages to the clients. Only `threads`, `device` and, on a GPU,
    `clients_per_batch`, or `workers_per_gpu` where that is null, can change a result."""

    kind: Annotated[Text, ENGINE] = Field(
        default=AUTO,
        description="inprocess is one loop, ray many processes, auto the one that ends sooner",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        le=MAX_WORKERS,
        description="number of worker processes; null is as many as the cores can run",
    )
    threads: int = Field(
        default=1,
        ge=1,
        le=MAX_WORKERS,
        description="torch threads in each process; another number may change last digits",
    )
    address: Text | None = Field(default=None, description="address of a Ray cluster to join")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto",
        description="what the model computes on; auto is a GPU if there is one. Another kind of"
        " device may change last digits",
    )
    workers_per_gpu: int = Field(
        default=1, ge=1, le=64, description="worker processes that share a GPU"
    )
    clients_per_batch: int | None = Field(
        default=None,
        ge=1,
        le=1_000,
        description="neighbouring clients whose clips share forward passes; null is 1 on the"
        " processor, and on a GPU what its memory holds. On a GPU another number may change last"
        " digits",
    )

    @property
    def digits(self) -> dict[str, int]:
        """The settings, beside the device, that may change last digits."""
        found = {"threads": self.threads}
        if self.clients_per_batch is not None:
            found["clients_per_batch"] = self.clients_per_batch
        elif self.workers_per_gpu > 1:  # who share the memory, by which the number is chosen
            found["workers_per_gpu"] = self.workers_per_gpu
        return found
