"""What a ledger holds of clients beside their results: failures, events, releases, workloads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["failed", "dropped", "quarantined", "declined"]
"""How a client that did not finish ended: by an error of its own, by silence beyond all retries, by
messages that no honest client sends, or of its own will, its privacy budget spent."""


@dataclass(frozen=True)
class Failure:
    """A client that could not go on: at which stage (sense, plan, personalize, evaluate) and
    why."""

    client: str
    stage: str
    reason: str
    """One sentence."""
    outcome: Outcome = "failed"


@dataclass(frozen=True)
class Event:
    """Something that went wrong on the way and was handled: a message lost, a reply refused."""

    client: str
    stage: str
    attempt: int
    """1 for the first message of the stage to the client."""
    event: str
    """In a word or two: `no answer`, `refused`, `late reply`, ..."""
    detail: str = ""


@dataclass(frozen=True)
class Release:
    """One thing that left a device (`up`) or came to it (`down`)."""

    client: str
    stage: str
    direction: Literal["up", "down"]
    field: str
    bytes: int
    epsilon: float | None = None
    """What it cost in differential privacy; None if no noise was added."""


@dataclass(frozen=True)
class Payload:
    """What the server saw of one client's sensitivities, to the byte: what an audit attacks."""

    client: str
    round: int
    """From 1."""
    release: str
    """How to read it: `values`, `ranks`, ...; of `cohort` it is the mean of the client's group."""
    payload: bytes


@dataclass(frozen=True)
class Workload:
    """How much a client had to compute on: its tuning clips (stage sense), its test clips
    (evaluate)."""

    client: str
    stage: str
    clips: int
    seconds: float
    """Of audio."""
    tokens: float = 0.0
    """Of the model's own transcripts, where its decoder computes on them."""


@dataclass(frozen=True)
class Planned:
    """The model that a client was sent for a method, whether it was tested in the end or not."""

    client: str
    method: str
    bits: tuple[int, ...]


@dataclass
class Log:
    """What is to be written of a client together with the next thing that it finishes."""

    releases: list[Release] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    workloads: list[Workload] = field(default_factory=list)
    planned: list[Planned] = field(default_factory=list)
