"""What a scenario says of devices, of time, and of what goes wrong on the way."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fedsim.errors import FedsimError
from fedsim.fleet.sampling import FleetSettings, read_fleet
from fedsim.fleet.work import ServerClock
from fedsim.scenario.settings import Settings, Text, as_tuple, problem


class FleetChoice(Settings):
    """The clients' devices: drawn from shares of classes, or listed in a table."""

    catalogue: Text | None = Field(
        default=None, description="YAML file of device classes, over the built-in ones"
    )
    devices: dict[str, Any] = Field(
        default={}, description="device class -> its share, or {share: ..., budget_mb: ..., ...}"
    )
    correlation: dict[str, dict[str, Any]] = Field(
        default={}, description="quantity -> quantity -> correlation from -1 to 1"
    )
    trace: Text | None = Field(
        default=None, description="CSV or Parquet file with a device a row, in place of devices"
    )
    sensing: Literal["streamed", "proxy"] = Field(
        default="streamed",
        description="what a device does that cannot hold the full-precision model: read it layer"
        " by layer, or sense on an 8-bit proxy",
    )

    clip_s: float = Field(
        default=10,
        gt=0,
        le=60,
        description="seconds of audio that a device computes on at one time: their activations must"
        " fit into its memory beside the weights",
    )

    @model_validator(mode="after")
    def _check(self) -> FleetChoice:
        try:
            self.read()
        except FedsimError as error:
            where, _, text = str(error).partition(": ")
            raise problem(text, *where.split(".")[1:]) from None
        return self

    def read(self) -> FleetSettings:
        """Return what the devices are drawn from."""
        said = self.model_dump(exclude={"sensing", "clip_s"}, exclude_defaults=True)
        return read_fleet(said)


class ClockSettings(Settings):
    """The server on the virtual clock, and when a round ends."""

    model: Text | None = Field(
        default=None,
        description="label of the model that is timed, such as myqasr/cosine; null is the first"
        " quantized one",
    )
    egress_mbit: float | None = Field(
        default=None, gt=0, description="Mbit a second out of the server; null is no limit"
    )
    planners: int = Field(default=1, ge=1, description="clients that are planned for at once")
    plan_s: float = Field(default=0.001, ge=0, description="seconds to plan for one client")
    begin_hour: float = Field(
        default=0, ge=0, lt=24, description="hour of the day at which the round begins"
    )
    policy: Literal["wait", "drop", "extend", "over_select"] = Field(
        default="wait",
        description="who is waited for: all; drop who is late; extend until the goal is reached;"
        " end as soon as it is",
    )
    deadline_s: float | None = Field(default=None, gt=0, description="seconds until the deadline")
    goal: float | None = Field(
        default=None, gt=0, le=1, description="share of the clients whose models are enough"
    )

    @model_validator(mode="after")
    def _check(self) -> ClockSettings:
        try:
            self.server(RetrySettings())
        except FedsimError as error:
            raise problem(str(error), "policy") from None
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
    seconds: Annotated[tuple[float, float], BeforeValidator(as_tuple)] | None = Field(
        default=None, description="delay: the least and the longest, in seconds of the fleet"
    )

    @model_validator(mode="after")
    def _check(self) -> FaultSettings:
        if (self.kind == "delay") != (self.seconds is not None):
            text = "delay needs it, other faults take none: such as seconds: [5, 60]"
            raise problem(text, "seconds")
        if self.seconds is not None and not 0 <= self.seconds[0] <= self.seconds[1]:
            raise problem("goes from the least to the longest, both 0 or more", "seconds")
        return self


class RetrySettings(Settings):
    """What the server does about a client that does not answer, or not as it should."""

    attempts: int = Field(default=3, ge=1, description="times that a message is sent at most")
    timeout_s: float = Field(
        default=600,
        gt=0,
        description="seconds of the fleet until a lost answer is missed, from when it would have"
        " come",
    )
    backoff_s: float = Field(
        default=30, ge=0, description="pause before the second attempt; each further one doubles it"
    )
    quarantine_after: int = Field(
        default=2, ge=1, description="unreadable replies to one message until the client is left"
    )

    def pause_s(self, attempt: int) -> float:
        """Return the pause after an attempt without success, in seconds."""
        return self.backoff_s * 2 ** (attempt - 1)
