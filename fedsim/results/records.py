"""What a ledger holds about clients besides results: failures, events, releases, workloads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["failed", "dropped", "quarantined", "declined"]
"""How a client that did not finish ended: by an error, by not answering any retry, by messages that
no honest client sends, or by declining because its privacy budget is spent."""


FULL_MODEL, PUBLIC_CLIPS = "full-precision model", "public clips"
"""Fields of the releases for what a device that rounds its own model downloads: no message holds
them."""


@dataclass(frozen=True)
class Failure:
    """A client that could not go on, at which stage (sense, plan, personalize, evaluate), and
    why."""

    client: str
    stage: str
    reason: str
    """One sentence."""
    outcome: Outcome = "failed"


@dataclass(frozen=True)
class Event:
    """Something that went wrong and was handled: a lost message, a rejected reply."""

    client: str
    stage: str
    attempt: int
    """1 for the first message of the stage to the client."""
    event: str
    """A word or two: `no answer`, `refused`, `late reply`, ..."""
    detail: str = ""


@dataclass(frozen=True)
class Release:
    """One field of a message that left a device (`up`) or reached it (`down`)."""

    client: str
    stage: str
    direction: Literal["up", "down"]
    field: str
    bytes: int
    epsilon: float | None = None
    """Its cost in differential privacy; None if no noise was added."""


@dataclass(frozen=True)
class Payload:
    """The bytes of one client's release of its layer profile, which audits attack."""

    client: str
    round: int
    """From 1."""
    release: str
    """The kind of release: `values`, `ranks`, ...; `cohort` is the mean of the client's group."""
    payload: bytes


@dataclass(frozen=True)
class Workload:
    """The audio that a client had to process: its tuning clips (stage sense) or its test clips
    (evaluate)."""

    client: str
    stage: str
    clips: int
    seconds: float
    """Of audio."""
    tokens: float = 0.0
    """In the model's own transcripts, if it has a decoder."""


@dataclass(frozen=True)
class Planned:
    """The plan of a model that a client was sent for a method, whether or not it was tested."""

    client: str
    method: str
    bits: tuple[int, ...]
    language: str = ""
    """Whose model it is; empty where files do not differ by language."""


@dataclass
class Log:
    """Records about a client, to be written together with its next result."""

    releases: list[Release] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    workloads: list[Workload] = field(default_factory=list)
    planned: list[Planned] = field(default_factory=list)
