"""The tables of the HTML report, but for those of the fleet and of what went wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fedsim.base.units import MB
from fedsim.report.cells import (
    INTERVAL,
    Cell,
    HtmlTable,
    count_cell,
    number_cell,
    rate_columns,
    setting_keys,
    settings_cells,
    span_cell,
    table_of,
)
from fedsim.report.findings import Compared, points
from fedsim.results.endings import FINISHED, IN_PART
from fedsim.results.labels import RUN, heading, plain_value
from fedsim.results.lines import size_digits, source_of, span
from fedsim.results.rates import PartLine, measure
from fedsim.results.rows import Row
from fedsim.results.runs import Part, Run, differences
from fedsim.scenario.methods import FULL_PRECISION, OWN

MOST_ROWS = 50
"""Rows of tables that have one or more for a client; files of the run folder hold them all."""


def results_table(lines: Sequence[PartLine]) -> HtmlTable:
    """Return one row a line: the table that a run prints, with intervals."""
    keys = setting_keys(line.part for line in lines)
    digits = _digits(lines)
    rate_heads, rates = rate_columns([line.rate for line in lines])
    heads = [*map(heading, keys), "method", "tuned on", "model MB", "mean bits"]
    return table_of(
        [*heads, *rate_heads, "clients"],
        [
            [
                *settings_cells(line.part, keys),
                Cell(line.method),
                Cell(line.source),
                Cell(span(line.megabytes, digits), max(line.megabytes)),
                Cell(span(line.mean_bits, 2), max(line.mean_bits)),
                *rate,
                _clients_cell(line),
            ]
            for line, rate in zip(lines, rates, strict=True)
        ],
    )


def clients_table(lines: Sequence[PartLine]) -> HtmlTable:
    """Return one row a client, method and source, `MOST_ROWS` at most."""
    keys = setting_keys(line.part for line in lines)
    digits = _digits(lines)
    rows = [(line.part, row) for line in lines for row in line.rows]
    total = len(rows)
    rows = sorted(rows, key=lambda found: (found[1].client, found[0].label))[:MOST_ROWS]
    rate_heads, rates = rate_columns([measure(part, [row]) for part, row in rows])
    heads = [*map(heading, keys), "client", "budget MB", "method", "tuned on", "model MB"]
    return table_of(
        [*heads, "mean bits", *rate_heads, "errors", "of"],
        [
            [
                *settings_cells(part, keys),
                Cell(row.client),
                number_cell(row.budget_bytes / MB, digits),
                Cell(row.method),
                Cell("own" if source_of(row) == OWN else row.tuned_on),
                number_cell(row.file_bytes / MB, digits),
                number_cell(row.mean_bits, 2),
                *rate,
                *_counts(row),
            ]
            for (part, row), rate in zip(rows, rates, strict=True)
        ],
        total,
    )


def comparisons_table(compared: Sequence[Compared]) -> HtmlTable:
    """Return one row a comparison: the difference, its interval and the verdict."""
    several = any(c.pair.settings for c in compared)
    heads = [*(["settings"] if several else []), "first", "second", "difference, points"]
    heads += [INTERVAL, "the first is", "more clips"]
    rows = []
    for c in compared:
        low, high, more = c.result.low, c.result.high, c.result.more_clips
        known = low == low  # NaN: one clip has no interval
        rows.append(
            [
                *([Cell(c.pair.settings)] if several else []),
                *map(Cell, c.pair.names),
                Cell(points(c.result.difference), c.result.difference),
                Cell(f"[{points(low)}, {points(high)}]" if known else "-", low if known else None),
                Cell(c.result.verdict),
                Cell("-" if more is None else f"{float(f'{more:.1e}'):,.0f}", float(more or 0)),
            ]
        )
    return table_of(heads, rows)


def devices_table(parts: Sequence[Part]) -> HtmlTable:
    """Return one row a client of each run, `MOST_ROWS` at most: its class of device, its budgets,
    the sizes of its models, its test clips, and how it ended."""
    places: dict[tuple[str, str], list[Part]] = {}
    for part in parts:
        for client in part.endings:
            places.setdefault((str(part.settings.get(RUN, "")), client), []).append(part)
    several, timed = any(run for run, _ in places), any(part.timed for part in parts)
    rows = []
    for run, client in sorted(places)[:MOST_ROWS]:
        its = places[run, client]
        found = [row for part in its for row in part.rows_of.get(client, ())]
        small = [row.file_bytes / MB for row in found if row.allocation != FULL_PRECISION]
        budgets = [row.budget_bytes / MB for row in found]
        known = [p.timed.budgets.get(client) for p in its if p.timed]
        budgets += [n_bytes / MB for n_bytes in known if n_bytes]
        digits = size_digits(small or budgets)
        cells = [Cell(run)] * several + [Cell(client)] + [Cell(_device(client, its))] * timed
        cells += [span_cell(budgets, digits), span_cell(small, digits)]
        cells += [span_cell([float(row.clips) for row in found], 0)]
        rows.append([*cells, Cell(_ending([part.endings[client] for part in its]))])
    heads = [RUN] * several + ["client"] + ["device"] * timed
    heads += ["budget MB", "compressed model MB", "test clips", "state"]
    return table_of(heads, rows, len(places))


def releases_table(parts: Sequence[Part]) -> HtmlTable:
    """Return one row for each thing that left devices: how many devices, and how many bytes."""
    sizes: dict[tuple[str, str], list[int]] = {}
    clients: dict[tuple[str, str], set[str]] = {}
    costs: dict[tuple[str, str], set[float]] = {}
    for part in parts:
        for release in part.releases:
            if release.direction == "up" and release.bytes:
                key = (release.stage, release.field)
                sizes.setdefault(key, []).append(release.bytes)
                clients.setdefault(key, set()).add(release.client)
                if release.epsilon is not None:
                    costs.setdefault(key, set()).add(release.epsilon)
    heads = ["what", "when", "clients", "bytes each time", "bytes in all", "ε each time"]
    return table_of(
        heads,
        [
            [
                Cell(field.replace("_", " ")),
                Cell(stage),
                count_cell(len(clients[stage, field])),
                Cell(_bytes_span(found), max(found)),
                count_cell(sum(found)),
                _epsilon_cell(costs.get((stage, field), set())),
            ]
            for (stage, field), found in sizes.items()
        ],
    )


def _epsilon_cell(costs: set[float]) -> Cell:
    """Return what releases cost, as a span; nothing where no noise was added."""
    if not costs:
        return Cell("no noise")
    ends = f"{min(costs):g}", f"{max(costs):g}"
    return Cell("–".join(dict.fromkeys(ends)), max(costs))


def differences_table(runs: Sequence[Run]) -> HtmlTable:
    """Return one row for each setting in which runs differ."""
    found = {k: v for k, v in differences(runs).items() if k not in ("name", "description")}
    rows = [[Cell(key), *(Cell(_setting(v)) for v in values)] for key, values in found.items()]
    return table_of(["setting", *(run.name for run in runs)], rows)


def _device(client: str, parts: Sequence[Part]) -> str:
    """Return the class of a client's device, or classes, as parts say it."""
    found = (p.timed.devices.get(client, "") for p in parts if p.timed)
    return ", ".join(filter(None, dict.fromkeys(found))) or "-"


def _ending(each: Sequence[str]) -> str:
    """Return how a client ended in the parts of a run together."""
    if len(set(each)) == 1:
        return each[0]
    return IN_PART if {FINISHED, IN_PART} & set(each) else "failed"


def _clients_cell(line: PartLine) -> Cell:
    done, every = line.clients, len(line.part.clients)
    return Cell(f"{done:,}" if done == every else f"{done:,} of {every:,}", done)


def _counts(row: Row) -> list[Cell]:
    if row.words is not None:
        wrong, of = row.errors or 0, row.words
    else:
        wrong, of = row.clips - (row.correct or 0), row.clips
    return [count_cell(wrong), count_cell(of)]


def _digits(lines: Iterable[PartLine]) -> int:
    return size_digits(x for line in lines if not line.is_full_precision for x in line.megabytes)


def _bytes_span(values: Sequence[int]) -> str:
    least, most = f"{min(values):,}", f"{max(values):,}"
    return least if least == most else f"{least}–{most}"


def _setting(value: Any) -> str:
    return plain_value(value) or "-"
