"""Declared faults: which of a scenario's `faults` hits which message.

A fault is drawn from the scenario's seed for each client, stage and attempt: the same on any
engine, in any order, and after a resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.base.seeds import client_rng
from fedsim.fleet.faults import FAULTS
from fedsim.fleet.work import Attempt
from fedsim.scenario.clock import FaultSettings
from fedsim.scenario.schema import Scenario


@dataclass(frozen=True)
class Fault:
    """A fault that hits one attempt; `seconds` is the delay of the answer."""

    kind: str
    seconds: float = 0.0


def attempts(scenario: Scenario, client: str, stage: str) -> tuple[Attempt, ...]:
    """Return the outcome of each attempt of a stage at a client, by the declared faults alone.

    After the last attempt the server continues, or drops the client.
    """
    retries, found, strikes = scenario.retries, list[Attempt](), 0
    for number in range(1, retries.attempts + 1):
        fault = drawn_fault(
            scenario.faults, scenario.seed, client, stage, number, retries.timeout_s
        )
        if fault is None:
            return (*found, Attempt())
        outcome = FAULTS[fault.kind].outcome
        if outcome == "unread":
            strikes += 1
            if strikes >= retries.quarantine_after or number == retries.attempts:
                outcome = "refused"
        match outcome:
            case "ok" | "refused":
                return (*found, Attempt(outcome))
            case "delayed":
                return (*found, Attempt(outcome, delay_s=fault.seconds))
            case "crashed":
                fraction = client_rng(scenario.seed, client, f"crash-{stage}-{number}").random()
                found.append(Attempt(outcome, fraction=float(fraction)))
            case _:
                found.append(Attempt(outcome))
    return tuple(found)


def drawn_fault(
    faults: Sequence[FaultSettings],
    seed: int,
    client: str,
    stage: str,
    attempt: int,
    timeout_s: float,
) -> Fault | None:
    """Return the fault of one attempt (1 is the first), or None.

    Of several that would hit, the first that is declared `per: client` does, else the first that is
    declared: an occasional fault must not hide what always happens to a client. A delay beyond
    `timeout_s` is returned as `late`.
    """
    if not faults:
        return None
    drawn = client_rng(seed, client, f"fault-{stage}-{attempt}").random((len(faults), 2))
    for place, fault in sorted(enumerate(faults), key=lambda item: item[1].per != "client"):
        chance, length = drawn[place]
        if fault.per == "client":
            chance = client_rng(seed, client, f"fault-{place}").random()
        if chance >= fault.share or fault.stage not in (None, stage):
            continue
        if fault.seconds is None:
            return Fault(fault.kind)
        low, high = fault.seconds
        seconds = low + (high - low) * float(length)
        return Fault("delay" if seconds <= timeout_s else "late", seconds)
    return None
