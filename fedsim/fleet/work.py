"""What a round asks of each client and of the server: the inputs of the virtual clock."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedsim.errors import FedsimError, nearest
from fedsim.fleet.devices import DeviceProfile

STAGES = ("sense", "personalize", "evaluate")
"""The exchanges of a round, in order; the server plans between the first two."""
Outcome = Literal["ok", "delayed", "lost", "unreached", "crashed", "unread", "refused", "failed"]
_FAILED = ("lost", "unreached", "crashed", "unread")


@dataclass(frozen=True)
class Policy:
    """Which clients a round waits for, and the settings of `ServerClock` that this reads."""

    summary: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    """Settings that may be given besides."""


POLICIES: Mapping[str, Policy] = {
    "wait": Policy("The round ends with the last client."),
    "drop": Policy("Clients without a model at the deadline are left out.", needs=("deadline_s",)),
    "extend": Policy(
        "As drop, but the deadline is extended until the goal is reached.",
        needs=("deadline_s", "goal"),
    ),
    "over_select": Policy(
        "The round ends as soon as the goal is reached, or at the deadline.",
        needs=("goal",),
        takes=("deadline_s",),
    ),
}


def unfit_settings(policy: str, given: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield (setting, message) for each that a policy lacks, and each that it does not read.

    Args:
        policy: one of `POLICIES`.
        given: the settings that have a value, among `deadline_s` and `goal`.
    """
    entry = POLICIES[policy]
    for name in ("deadline_s", "goal"):
        if name in entry.needs and name not in given:
            yield "policy", f"{policy!r} needs {name}: add it"
        if name in given and name not in (*entry.needs, *entry.takes):
            readers = [key for key, other in POLICIES.items() if name in other.needs + other.takes]
            yield (
                name,
                f"the policy {policy!r} does not read it: leave it out, or use"
                f" {' or '.join(readers)}",
            )


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of an exchange, and how it ended.

    - `ok`: the server has the reply.
    - `delayed`: it has, `delay_s` later than the link explains.
    - `lost`: the device did everything, and its reply was lost; the next attempt sends it again.
    - `unreached`: the server's request was lost, and the device did nothing.
    - `crashed`: the device stopped after `fraction` of the stage's computing. What it computed is
      lost, also in an earlier attempt; what it downloaded stays.
    - `unread`: the reply arrived and could not be read, and the server asks again at once.
    - `refused`: the reply arrived, and the server put the client into quarantine for it.
    - `failed`: the device answered the request at once that it cannot do it: it fetched no blob and
      computed nothing.
    """

    outcome: Outcome = "ok"
    delay_s: float = 0.0
    fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class StageWork:
    """What one exchange is: a request and blobs come down, the device computes, a reply goes up."""

    blobs: tuple[str, ...] = ()
    """Names of what the device must hold; what it lacks is downloaded."""
    macs: Mapping[int, float] = field(default_factory=dict)
    """Bit depth (32: full precision) -> MACs."""
    read_bytes: int = 0
    """Bytes read from the device's storage while computing: a model larger than its memory."""
    down_bytes: int = 0
    """Bytes of the request."""
    up_bytes: int = 0
    """Bytes of the reply."""
    attempts: tuple[Attempt, ...] = (Attempt(),)
    """Tries in order: all but the last were lost, unreached, crashed or unread."""

    def __post_init__(self) -> None:
        outcomes = [attempt.outcome for attempt in self.attempts]
        if not outcomes or any(outcome not in _FAILED for outcome in outcomes[:-1]):
            raise ValueError(f"attempts {outcomes}: only a failed one has another after it")


@dataclass(frozen=True, slots=True)
class ClientWork:
    """What a round is for one client."""

    client: str
    profile: DeviceProfile
    sense: StageWork
    personalize: StageWork
    """Its blobs are the layers of the client's model, its computing the calibration."""
    evaluate: StageWork = StageWork()
    planned: bool = True
    """Whether there is a plan for it: else it ends after the summary, as `failed`."""
    held: frozenset[str] = frozenset()
    """Names of blobs that the device holds before the round."""


@dataclass(frozen=True)
class ServerClock:
    """What the server has, and when a round ends.

    Policies: `wait` for everyone; `drop` who has no model at the deadline; `extend` the deadline
    until the goal is reached, if it is not yet; `over_select`, that is to end the round as soon as
    the goal is reached, or at the deadline if there is one (Bonawitz et al. 2019, "Towards
    Federated Learning at Scale: System Design").

    Raises:
        FedsimError: for an unknown policy, one without a setting that it needs, and a setting that
            it does not read.
    """

    egress_mbit: float | None = None
    """Mbit (10^6 bits) a second out of the server, shared by all downloads; None: no limit."""
    planners: int = 1
    """Clients that are planned for at the same time; others queue."""
    plan_s: float = 0.0
    """Seconds to plan for one client."""
    timeout_s: float = 60.0
    """Seconds after which an answer that was lost is missed, from when it would have come: a
    device that is slow or asleep is a matter of the deadline."""
    backoff_s: float = 10.0
    """Seconds before the first retry of an exchange; twice as many before each further one."""
    begin_hour: float = 0.0
    """Hour of the day, on every device's own clock, at which the round begins."""
    policy: str = "wait"
    deadline_s: float | None = None
    goal: float | None = None
    """Share of all clients, 0..1, whose models are enough."""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            hint = nearest(self.policy, POLICIES)
            raise FedsimError(f"policy: {self.policy!r} is unknown: {hint}")
        given = [name for name in ("deadline_s", "goal") if getattr(self, name) is not None]
        for setting, message in unfit_settings(self.policy, given):
            raise FedsimError(f"{setting}: {message}")


def check_work(work: ClientWork, blob_bytes: Mapping[str, int]) -> None:
    """Check that a client's device can do its work, and that its blobs have sizes.

    Raises:
        FedsimError: for MACs at a bit depth for which the device has no speed.
        ValueError: for a blob without a size.
    """
    for name in STAGES:
        stage: StageWork = getattr(work, name)
        for bits in stage.macs:
            if bits not in work.profile.macs_per_s:
                known = ", ".join(map(str, sorted(work.profile.macs_per_s)))
                raise FedsimError(
                    f"client {work.client!r}: {name} computes at {bits} bits, for which its device "
                    f"{work.profile.device!r} has no speed (it has {known}): plan with its bit "
                    f"depths"
                )
        for blob in stage.blobs:
            if blob not in blob_bytes:
                raise ValueError(f"client {work.client!r}: blob {blob!r} has no size")
