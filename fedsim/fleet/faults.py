"""The kinds of faults that a scenario may declare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedsim.fleet.work import Outcome


@dataclass(frozen=True)
class FaultKind:
    """Something that goes wrong with one attempt of an exchange."""

    summary: str
    outcome: Outcome
    """How the attempt ends on the virtual clock; `unread` becomes `refused` with too many."""
    no_answer: str = ""
    """What is reported to the server in place of the answer; empty: an answer arrives."""
    work_done: bool = True
    """Whether the client does what it is asked for."""
    takes_seconds: bool = False
    """Whether it says how long it takes: `seconds` of the scenario's `faults`."""


FAULTS: Mapping[str, FaultKind] = {
    "drop_before": FaultKind(
        "The request is lost; the client does nothing.",
        "unreached",
        no_answer="the request was lost",
        work_done=False,
    ),
    "drop_after": FaultKind(
        "The client answers, and the answer is lost.", "lost", no_answer="the answer was lost"
    ),
    "delay": FaultKind(
        "The answer takes longer; beyond `retries.timeout_s` it is late.",
        "delayed",
        takes_seconds=True,
    ),
    "crash": FaultKind(
        "The client dies over the request.",
        "crashed",
        no_answer="the client crashed",
        work_done=False,
    ),
    "out_of_memory": FaultKind(
        "The client runs out of memory over the request.",
        "crashed",
        no_answer="the client ran out of memory",
        work_done=False,
    ),
    "corrupt": FaultKind("The answer arrives damaged.", "unread"),
    "duplicate": FaultKind("The answer arrives twice.", "ok"),
    "late": FaultKind(
        "The answer arrives after the server has given up this attempt.",
        "lost",
        no_answer="no answer in time",
    ),
    "wrong_version": FaultKind("The client speaks another version of the protocol.", "refused"),
}
"""Every kind of fault by its name."""
