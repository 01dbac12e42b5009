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
from fedsim.report.runs import Part
from fedsim.report.settings import heading
from fedsim.results.endings import FINISHED, IN_PART
from fedsim.results.ledger import Failure

STAGES = ("sense", "plan", "personalize", "evaluate")
_ENDINGS = ("dropped", "quarantined", "failed")
_MOST_REASONS = 12
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


def wrong_section(parts: Sequence[Part]) -> Section | None:
    """Return what is to be said; None if nothing went wrong."""
    bad = [part for part in parts if part.failures or part.events]
    if not bad:
        return None
    keys = setting_keys(parts)
    reasons = [reason for part in bad for reason in _reasons(part)]
    reasons.sort(key=lambda reason: -reason.clients)  # of equals, the first stays first
    return Section(
        _endings(bad, keys),
        _events(bad, keys),
        tuple(reasons[:_MOST_REASONS]),
        max(0, len(reasons) - _MOST_REASONS),
    )


def _endings(parts: Sequence[Part], keys: Sequence[str]) -> HtmlTable:
    """Return how many clients ended in which way; every client is counted once."""
    rows = []
    for part in parts:
        counts = Counter(part.endings.values())
        begun = int(part.timing.get("clients", 0))
        whole = [counts[FINISHED] + counts[IN_PART], *(counts[e] for e in _ENDINGS)]
        cells = [*map(count_cell, whole), count_cell(max(begun, sum(whole)) - sum(whole))]
        cells += [count_cell(max(begun, sum(whole))), count_cell(counts[IN_PART])]
        rows.append([*settings_cells(part, keys), *cells])
    heads = [*map(heading, keys), FINISHED, *_ENDINGS, "not reached", "all clients"]
    return table_of([*heads, "finished, but lost some results"], rows)


def _events(parts: Sequence[Part], keys: Sequence[str]) -> HtmlTable:
    """Return how often what happened at which stage."""
    rows = []
    for part in parts:
        times = Counter((event.event, event.stage) for event in part.events)
        clients: dict[str, set[str]] = {}
        for event in part.events:
            clients.setdefault(event.event, set()).add(event.client)
        for event in sorted(clients):
            each = [times[event, stage] for stage in STAGES]
            cells = [Cell(event), *map(count_cell, each), count_cell(sum(each))]
            cells += [count_cell(len(clients[event]))]
            rows.append([*settings_cells(part, keys), *cells])
    return table_of([*map(heading, keys), "what", *STAGES, "times", "clients"], rows)


def _reasons(part: Part) -> Iterator[Reason]:
    alike: dict[tuple[str, str], list[Failure]] = {}
    for failure in part.failures:
        alike.setdefault((failure.stage, _kind(failure)), []).append(failure)
    for found in alike.values():
        yield Reason(part.label, found[0], len({failure.client for failure in found}))


def _kind(failure: Failure) -> str:
    """Return a reason without the client's name and without numbers."""
    return _NUMBER.sub("0", failure.reason.replace(repr(failure.client), ""))
