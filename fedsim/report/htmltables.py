"""The tables of the HTML report, except those of the fleet and of what went wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedsim.base.units import MB
from fedsim.report.cells import (
    INTERVAL,
    Cell,
    HtmlTable,
    count_cell,
    loop_columns,
    number_cell,
    rare_columns,
    rate_columns,
    setting_keys,
    settings_cells,
    table_of,
)
from fedsim.report.findings import Compared, points
from fedsim.results.differences import differences
from fedsim.results.labels import heading, plain_value
from fedsim.results.lines import Source, size_digits, size_heading, source_of, span
from fedsim.results.rates import PartLine, measure
from fedsim.results.rows import Row
from fedsim.results.runs import Part, Run

MAX_ROWS = 50
"""Rows of tables that have one or more per client; files in the run folder have them all."""


def results_table(lines: Sequence[PartLine]) -> HtmlTable:
    """Return one row per line: the table that a run prints, with intervals."""
    keys = setting_keys(line.part for line in lines)
    digits = _digits(lines)
    rate_heads, rates = rate_columns([line.rate for line in lines])
    loop_heads, loops = loop_columns([line.rows for line in lines])
    rare_heads, rares = rare_columns([line.rare for line in lines])
    size = size_heading(row for line in lines for row in line.rows)
    heads = [*map(heading, keys), "method", "tuned on", size, "mean bits"]
    return table_of(
        [*heads, *rate_heads, *loop_heads, *rare_heads, "clients"],
        [
            [
                *settings_cells(line.part, keys),
                Cell(line.method),
                Cell(line.source.value),
                Cell(span(line.megabytes, digits), max(line.megabytes)),
                Cell(span(line.mean_bits, 2), max(line.mean_bits)),
                *rate,
                *loop,
                *rare,
                _clients_cell(line),
            ]
            for line, rate, loop, rare in zip(lines, rates, loops, rares, strict=True)
        ],
    )


def clients_table(lines: Sequence[PartLine], max_rows: int = MAX_ROWS) -> HtmlTable:
    """Return one row per client, method and source, at most `max_rows`."""
    keys = setting_keys(line.part for line in lines)
    digits = _digits(lines)
    rows = [(line.part, row) for line in lines for row in line.rows]
    total = len(rows)
    rows = sorted(rows, key=lambda pair: (pair[1].client, pair[0].label))[:max_rows]
    rate_heads, rates = rate_columns([measure(part, [row]) for part, row in rows])
    loop_heads, loops = loop_columns([[row] for _, row in rows])
    size = size_heading(row for _, row in rows)
    heads = [*map(heading, keys), "client", "budget MB", "method", "tuned on", size]
    return table_of(
        [*heads, "mean bits", *rate_heads, *loop_heads, "errors", "of"],
        [
            [
                *settings_cells(part, keys),
                Cell(row.client),
                number_cell(row.budget_bytes / MB, digits),
                Cell(row.method),
                Cell(_tuned_on(row)),
                number_cell(row.file_bytes / MB, digits),
                number_cell(row.mean_bits, 2),
                *rate,
                *loop,
                *_counts(row),
            ]
            for (part, row), rate, loop in zip(rows, rates, loops, strict=True)
        ],
        total,
    )


def comparisons_table(compared: Sequence[Compared]) -> HtmlTable:
    """Return one row per comparison: the difference, its interval and the verdict."""
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


def releases_table(parts: Sequence[Part]) -> HtmlTable:
    """Return one row per field that left devices: from how many, and how many bytes."""
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
    heads = ["field", "stage", "clients", "bytes each time", "total bytes", "ε each time"]
    return table_of(
        heads,
        [
            [
                Cell(field.replace("_", " ")),
                Cell(stage),
                count_cell(len(clients[stage, field])),
                Cell(_bytes_span(n_bytes), max(n_bytes)),
                count_cell(sum(n_bytes)),
                _epsilon_cell(costs.get((stage, field), set())),
            ]
            for (stage, field), n_bytes in sizes.items()
        ],
    )


def _epsilon_cell(costs: set[float]) -> Cell:
    """Return the range of what releases cost, or `no noise`."""
    if not costs:
        return Cell("no noise")
    ends = f"{min(costs):g}", f"{max(costs):g}"
    return Cell("–".join(dict.fromkeys(ends)), max(costs))


def differences_table(runs: Sequence[Run]) -> HtmlTable:
    """Return one row per setting in which runs differ."""
    differing = differences([run.scenario for run in runs])
    rows = [
        [Cell(key), *(Cell(plain_value(v) or "-") for v in values)]
        for key, values in differing.items()
        if key not in ("name", "description")
    ]
    return table_of(["setting", *(run.name for run in runs)], rows)


def _clients_cell(line: PartLine) -> Cell:
    done, total = line.clients, len(line.part.clients)
    return Cell(f"{done:,}" if done == total else f"{done:,} of {total:,}", done)


def _counts(row: Row) -> list[Cell]:
    errors, total = row.counted or (row.clips - (row.correct or 0), row.clips)
    return [count_cell(errors), count_cell(total)]


def _digits(lines: Iterable[PartLine]) -> int:
    return size_digits(x for line in lines if not line.is_full_precision for x in line.megabytes)


def _bytes_span(values: Sequence[int]) -> str:
    low, high = f"{min(values):,}", f"{max(values):,}"
    return low if low == high else f"{low}–{high}"


def _tuned_on(row: Row) -> str:
    """Return whose clips a model was tuned on; another client is named as one."""
    source = source_of(row)
    return f"client {row.tuned_on}" if source is Source.OTHER else source.value
