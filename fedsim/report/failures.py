"""What went wrong: how clients ended and why, and what happened during the run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedsim.report.cells import (
    Cell,
    HtmlTable,
    count_cell,
    setting_keys,
    settings_cells,
    table_of,
)
from fedsim.results.endings import FINISHED, IN_PART
from fedsim.results.labels import heading
from fedsim.results.records import Failure
from fedsim.results.runs import Part

_GROUP = ("join", "share", "mask", "unmask", "aggregate")
_STAGES = ("sense", *_GROUP, "plan", "personalize", "evaluate")
_ENDINGS = ("dropped", "quarantined", "failed")
_DECLINED = "declined"
_NOT_REACHED = "not reached"
_MAX_REASONS = 12
_NUMBER = re.compile(r"\d[\d.,]*")


@dataclass(frozen=True)
class Reason:
    """Failures whose reasons differ only in client names and numbers."""

    label: str
    """The settings of the part in words."""
    first: Failure
    clients: int
    """How many clients failed for this reason."""


@dataclass(frozen=True)
class Section:
    """The section of a report on what went wrong."""

    endings: HtmlTable
    events: HtmlTable
    reasons: tuple[Reason, ...]
    """The most frequent ones, in descending order."""
    more: int
    """How many rarer reasons are left out."""


def failures_section(parts: Sequence[Part]) -> Section | None:
    """Return the section, or None if nothing went wrong."""
    affected = [part for part in parts if part.failures or part.events]
    if not affected:
        return None
    keys = setting_keys(parts)
    reasons = [reason for part in affected for reason in _reasons(part)]
    reasons.sort(key=lambda reason: -reason.clients)  # stable, so ties stay in order
    return Section(
        _endings(affected, keys),
        _events(affected, keys),
        tuple(reasons[:_MAX_REASONS]),
        max(0, len(reasons) - _MAX_REASONS),
    )


def _endings(parts: Sequence[Part], keys: Sequence[str]) -> HtmlTable:
    """Return how many clients ended in each way; every client is counted once."""
    tallies = [Counter(part.endings.values()) for part in parts]
    for part, tally in zip(parts, tallies, strict=True):
        tally[_NOT_REACHED] = max(0, int(part.timing.get("clients", 0)) - tally.total())
    shown = [FINISHED, IN_PART, *_ENDINGS, _DECLINED, _NOT_REACHED]
    shown = [e for e in shown if e in (FINISHED, *_ENDINGS) or any(t[e] for t in tallies)]
    rows = [
        [*settings_cells(part, keys), *(count_cell(n) for n in (*(t[e] for e in shown), t.total()))]
        for part, t in zip(parts, tallies, strict=True)
    ]
    heads = ["finished in part" if ending == IN_PART else ending for ending in shown]
    return table_of([*map(heading, keys), *heads, "all clients"], rows)


def _events(parts: Sequence[Part], keys: Sequence[str]) -> HtmlTable:
    """Return how often each event happened at each stage."""
    stages = [s for s in _STAGES if any(event.stage == s for p in parts for event in p.events)]
    rows = []
    for part in parts:
        times = Counter((event.event, event.stage) for event in part.events)
        clients: dict[str, set[str]] = {}
        for event in part.events:
            clients.setdefault(event.event, set()).add(event.client)
        for event_name, affected in sorted(clients.items()):
            counts = [times[event_name, stage] for stage in stages]
            cells = [Cell(event_name), *map(count_cell, counts), count_cell(sum(counts))]
            cells += [count_cell(len(affected))]
            rows.append([*settings_cells(part, keys), *cells])
    return table_of([*map(heading, keys), "event", *stages, "total", "clients"], rows)


def _reasons(part: Part) -> Iterator[Reason]:
    groups: dict[tuple[str, str], list[Failure]] = {}
    for failure in part.failures:
        groups.setdefault((failure.stage, _kind(failure)), []).append(failure)
    for group in groups.values():
        yield Reason(part.label, group[0], len({failure.client for failure in group}))


def _kind(failure: Failure) -> str:
    """Return a reason without the client's name and without numbers."""
    return _NUMBER.sub("0", failure.reason.replace(repr(failure.client), ""))
