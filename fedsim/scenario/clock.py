"""What a scenario says of time, of what goes wrong on the way, and of what the server does then."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from fedsim.fleet.faults import FAULTS
from fedsim.fleet.work import ServerClock, unfit_settings
from fedsim.scenario.settings import Settings, Text, as_tuple, problem

MAX_S = 10_000_000.0
"""Seconds that anything of the virtual clock may last: some months."""
_Seconds = Annotated[float, Field(le=MAX_S)]


class ClockSettings(Settings):
    """The server on the virtual clock, and when a round ends."""

    model: Text | None = Field(
        default=None,
        description="label of the model that is timed, such as myqasr/cosine; null is the first"
        " quantized one",
    )
    egress_mbit: float | None = Field(
        default=None, gt=0, le=1e9, description="Mbit a second out of the server; null is no limit"
    )
    planners: int = Field(
        default=1, ge=1, le=1_000_000, description="clients that are planned for at once"
    )
    plan_s: float = Field(
        default=0.001, ge=0, le=MAX_S, description="seconds to plan for one client"
    )
    begin_hour: float = Field(
        default=0, ge=0, lt=24, description="hour of the day at which the round begins"
    )
    policy: Literal["wait", "drop", "extend", "over_select"] = Field(
        default="wait",
        description="who is waited for: all; drop who is late; extend until the goal is reached;"
        " end as soon as it is",
    )
    deadline_s: float | None = Field(
        default=None, gt=0, le=MAX_S, description="seconds until the deadline"
    )
    goal: float | None = Field(
        default=None, gt=0, le=1, description="share of the clients whose models are enough"
    )

    @model_validator(mode="after")
    def _check(self) -> ClockSettings:
        given = [key for key in ("deadline_s", "goal") if getattr(self, key) is not None]
        for key, message in unfit_settings(self.policy, given):
            raise problem(message, key)
        return self

    def server(self, retries: RetrySettings) -> ServerClock:
        """Return the server's part of the clock."""
        return ServerClock(
            timeout_s=retries.timeout_s,
            backoff_s=retries.backoff_s,
            **self.model_dump(exclude={"model"}),
        )


class FaultSettings(Settings):
    """Something that goes wrong on the way, drawn for each message; see fedsim/study/faults.py."""

    kind: Literal[
        "drop_before",
        "drop_after",
        "delay",
        "crash",
        "out_of_memory",
        "corrupt",
        "duplicate",
        "late",
        "wrong_version",
    ] = Field(description="what goes wrong")
    share: float = Field(gt=0, le=1, description="probability that it does")
    stage: Literal["sense", "personalize", "evaluate"] | None = Field(
        default=None, description="messages of this stage only; null is any"
    )
    per: Literal["message", "client"] = Field(
        default="message",
        description="drawn anew for every attempt, or once for a client: then it always happens",
    )
    seconds: Annotated[tuple[_Seconds, _Seconds], BeforeValidator(as_tuple)] | None = Field(
        default=None, description="delay: [low, high], seconds of the fleet; uniform between them"
    )

    @model_validator(mode="after")
    def _check(self) -> FaultSettings:
        takes_seconds = FAULTS[self.kind].takes_seconds
        if takes_seconds and self.seconds is None:
            raise problem(f"{self.kind} needs seconds: add them, such as seconds: [5, 60]")
        if self.seconds is None:
            return self
        if not takes_seconds:
            raise problem(f"{self.kind} takes no seconds: leave them out", "seconds")
        low, high = self.seconds
        if not 0 <= low <= high:
            text = f"{low:g} to {high:g} is not a range: write [low, high], both 0 or more"
            raise problem(text, "seconds")
        return self


class RetrySettings(Settings):
    """What the server does about a client that does not answer, or not as it should."""

    attempts: int = Field(
        default=3, ge=1, le=20, description="times that a message is sent at most"
    )
    timeout_s: float = Field(
        default=600,
        gt=0,
        le=MAX_S,
        description="seconds of the fleet until a lost answer is missed, from when it would have"
        " come",
    )
    backoff_s: float = Field(
        default=30,
        ge=0,
        le=MAX_S,
        description="pause before the second attempt; each further one doubles it",
    )
    quarantine_after: int = Field(
        default=2,
        ge=1,
        le=100,
        description="unreadable replies to one message until the client is left",
    )

    def pause_s(self, attempt: int) -> float:
        """Return the pause after an attempt without success, in seconds."""
        return self.backoff_s * 2 ** (attempt - 1)
