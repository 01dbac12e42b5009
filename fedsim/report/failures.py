"""What went wrong in a report: how clients ended, what happened on the way, and why."""

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
    """Failures that differ only in whose they are and in their numbers."""

    label: str
    """The part, in words."""
    first: Failure
    clients: int


@dataclass(frozen=True)
class Section:
    """What a report says of what went wrong."""

    endings: HtmlTable
    events: HtmlTable
    reasons: tuple[Reason, ...]
    """The most frequent, then those of others."""
    more: int
    """Kinds of reasons that are left out."""


def failures_section(parts: Sequence[Part]) -> Section | None:
    """Return the section; None if nothing went wrong."""
    bad = [part for part in parts if part.failures or part.events]
    if not bad:
        return None
    keys = setting_keys(parts)
    reasons = [reason for part in bad for reason in _reasons(part)]
    reasons.sort(key=lambda reason: -reason.clients)  # of equals, the first stays first
    return Section(
        _endings(bad, keys),
        _events(bad, keys),
        tuple(reasons[:_MAX_REASONS]),
        max(0, len(reasons) - _MAX_REASONS),
    )


def _endings(parts: Sequence[Part], keys: Sequence[str]) -> HtmlTable:
    """Return how many clients ended in which way; every client is counted once."""
    each = [Counter(part.endings.values()) for part in parts]
    for part, counts in zip(parts, each, strict=True):
        counts[_NOT_REACHED] = max(0, int(part.timing.get("clients", 0)) - counts.total())
    shown = [FINISHED, IN_PART, *_ENDINGS, _DECLINED, _NOT_REACHED]
    shown = [e for e in shown if e in (FINISHED, *_ENDINGS) or any(c[e] for c in each)]
    rows = [
        [*settings_cells(part, keys), *(count_cell(n) for n in (*(c[e] for e in shown), c.total()))]
        for part, c in zip(parts, each, strict=True)
    ]
    heads = ["finished in part" if ending == IN_PART else ending for ending in shown]
    return table_of([*map(heading, keys), *heads, "all clients"], rows)


def _events(parts: Sequence[Part], keys: Sequence[str]) -> HtmlTable:
    """Return how often what happened at which stage."""
    stages = [s for s in _STAGES if any(event.stage == s for p in parts for event in p.events)]
    rows = []
    for part in parts:
        times = Counter((event.event, event.stage) for event in part.events)
        clients: dict[str, set[str]] = {}
        for event in part.events:
            clients.setdefault(event.event, set()).add(event.client)
        for what, whose in sorted(clients.items()):
            each = [times[what, stage] for stage in stages]
            cells = [Cell(what), *map(count_cell, each), count_cell(sum(each))]
            cells += [count_cell(len(whose))]
            rows.append([*settings_cells(part, keys), *cells])
    return table_of([*map(heading, keys), "what", *stages, "times", "clients"], rows)


def _reasons(part: Part) -> Iterator[Reason]:
    alike: dict[tuple[str, str], list[Failure]] = {}
    for failure in part.failures:
        alike.setdefault((failure.stage, _kind(failure)), []).append(failure)
    for found in alike.values():
        yield Reason(part.label, found[0], len({failure.client for failure in found}))


def _kind(failure: Failure) -> str:
    """Return a reason without the client's name and without numbers."""
    return _NUMBER.sub("0", failure.reason.replace(repr(failure.client), ""))
