"""The devices of a fleet: how their budgets, models and clips are distributed, and each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fedsim.base.units import MB
from fedsim.report.cells import (
    Cell,
    HtmlTable,
    count_cell,
    number_cell,
    setting_keys,
    settings_cells,
    span_cell,
    table_of,
)
from fedsim.report.tables import Table
from fedsim.results.endings import FINISHED, IN_PART
from fedsim.results.labels import RUN, heading
from fedsim.results.lines import size_digits
from fedsim.results.runs import Part
from fedsim.scenario.methods import FULL_PRECISION

_QUARTERS = ("smallest", "a quarter below", "median", "three quarters below", "largest")
_BINS = 20
_ONE_CLASS = "clients"


def endings_sentences(parts: Sequence[Part]) -> list[str]:
    """Return for each run how many of its clients finished, and how the others ended."""
    sentences = []
    for run, clients in _parts_by_client(parts).items():
        counts = Counter(
            _ending([part.endings[client] for part in own]) for client, own in clients.items()
        )
        finished = counts.pop(FINISHED, 0)
        rest = "".join(f"; {state}: {count:,}" for state, count in sorted(counts.items()))
        label = f"{run}: " if run else ""
        sentences.append(f"{label}{finished:,} of {len(clients):,} clients finished{rest}.")
    return sentences


def spreads_table(parts: Sequence[Part]) -> HtmlTable:
    """Return how budgets, sizes of compressed models and numbers of test clips are distributed over
    the clients of each part: their quartiles."""
    keys = setting_keys(parts)
    rows = []
    for part in parts:
        budgets = [n_bytes / MB for n_bytes in _budgets(part).values()]
        small = [row.file_bytes / MB for row in part.rows if row.allocation != FULL_PRECISION]
        clips = [float(own[0].clips) for own in part.rows_of.values()]
        digits = size_digits(small or budgets)
        for name, values, decimals in (
            ("budget, MB", budgets, digits),
            ("compressed models, MB", small, digits),
            ("test clips", clips, 0),
        ):
            if values:
                quarters = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
                cells = [number_cell(float(value), decimals) for value in quarters]
                start = [*settings_cells(part, keys), Cell(name), count_cell(len(values))]
                rows.append([*start, *cells])
    return table_of([*map(heading, keys), "of each", "number", *_QUARTERS], rows)


def budget_bins(part: Part) -> Table:
    """Return the number of clients per range of budgets and class of device: columns line (the
    class), low and high in MB, clients; empty if all budgets are equal.

    Ranges have equal widths, at most twenty; a budget at an edge belongs to the upper one, but the
    largest budget to the last.
    """
    budgets = {client: n_bytes / MB for client, n_bytes in _budgets(part).items()}
    if len(set(budgets.values())) < 2:
        return []
    edges = np.histogram_bin_edges([*budgets.values()], min(_BINS, len(budgets)))
    class_of = part.timed.devices if part.timed else {}
    members: dict[str, list[float]] = {}
    for client, megabytes in budgets.items():
        members.setdefault(class_of.get(client, _ONE_CLASS), []).append(megabytes)
    return [
        {"line": name, "low": round(low, 4), "high": round(high, 4), "clients": int(count)}
        for name, own in sorted(members.items())
        for low, high, count in zip(
            edges[:-1].tolist(), edges[1:].tolist(), np.histogram(own, edges)[0], strict=True
        )
        if count
    ]


def devices_table(parts: Sequence[Part], max_rows: int) -> HtmlTable:
    """Return one row per client of each run, at most `max_rows`: its device class, its budgets, the
    sizes of its models, its test clips, and how it ended."""
    parts_of = {
        (run, client): own
        for run, clients in _parts_by_client(parts).items()
        for client, own in clients.items()
    }
    several, timed = any(run for run, _ in parts_of), any(part.timed for part in parts)
    rows = []
    for run, client in sorted(parts_of)[:max_rows]:
        own_parts = parts_of[run, client]
        own_rows = [row for part in own_parts for row in part.rows_of.get(client, ())]
        small = [row.file_bytes / MB for row in own_rows if row.allocation != FULL_PRECISION]
        budgets = [row.budget_bytes / MB for row in own_rows]
        timed_budgets = [part.timed.budgets.get(client) for part in own_parts if part.timed]
        budgets += [n_bytes / MB for n_bytes in timed_budgets if n_bytes]
        digits = size_digits(small or budgets)
        cells = [Cell(run)] * several + [Cell(client)] + [Cell(_device(client, own_parts))] * timed
        cells += [span_cell(budgets, digits), span_cell(small, digits)]
        cells += [span_cell([float(row.clips) for row in own_rows], 0)]
        rows.append([*cells, Cell(_ending([part.endings[client] for part in own_parts]))])
    heads = [RUN] * several + ["client"] + ["device"] * timed
    heads += ["budget MB", "compressed model MB", "test clips", "state"]
    return table_of(heads, rows, len(parts_of))


def _parts_by_client(parts: Sequence[Part]) -> dict[str, dict[str, list[Part]]]:
    """Return run -> client that was reached -> its parts; the run is empty if there is only one."""
    found: dict[str, dict[str, list[Part]]] = {}
    for part in parts:
        clients = found.setdefault(str(part.settings.get(RUN, "")), {})
        for client in part.endings:
            clients.setdefault(client, []).append(part)
    return found


def _budgets(part: Part) -> dict[str, int]:
    """Return client -> its budget in bytes, also of clients that got no model if it is known."""
    timed = (
        {c: n_bytes for c, n_bytes in part.timed.budgets.items() if n_bytes} if part.timed else {}
    )
    return timed | {row.client: row.budget_bytes for row in part.rows}


def _device(client: str, parts: Sequence[Part]) -> str:
    """Return the class of a client's device, or its classes if parts differ."""
    classes = (part.timed.devices.get(client, "") for part in parts if part.timed)
    return ", ".join(filter(None, dict.fromkeys(classes))) or "-"


def _ending(endings: Sequence[str]) -> str:
    """Return how a client ended in all parts of a run together."""
    if len(set(endings)) == 1:
        return endings[0]
    return IN_PART if {FINISHED, IN_PART} & set(endings) else "failed"
