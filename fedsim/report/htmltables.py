"""The tables of the HTML report: heads, and cells that know how they sort."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.report.findings import Compared, points
from fedsim.report.lines import (
    MB,
    OWN,
    Line,
    Rate,
    measure,
    number,
    size_digits,
    source_of,
    span,
)
from fedsim.report.runs import RUN, Part, Run, differences, heading, plain_value
from fedsim.results.rows import Row
from fedsim.scenario.schema import FULL_PRECISION

MOST_ROWS = 1_000
"""Lines of the table by client; all of them are in results.parquet."""
_INTERVAL = "95 % interval"


@dataclass(frozen=True)
class Cell:
    """One cell: what it shows, and the number that it sorts by, or None to sort by the text."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class HtmlTable:
    """Heads, whether each column holds numbers, and rows of cells."""

    heads: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Cell, ...], ...]


def results_table(lines: Sequence[Line]) -> HtmlTable:
    """Return one row a line: the table that a run prints, with intervals."""
    keys = setting_keys(line.part for line in lines)
    digits = _digits(lines)
    rate_heads, rates = _rate_columns([line.rate for line in lines])
    heads = [*map(heading, keys), "method", "tuned on", "model MB", "mean bits"]
    return table_of(
        [*heads, *rate_heads, "clients"],
        [
            [
                *_settings(line.part, keys),
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


def clients_table(lines: Sequence[Line]) -> HtmlTable:
    """Return one row a client, method and source, `MOST_ROWS` at most."""
    keys = setting_keys(line.part for line in lines)
    digits = _digits(lines)
    rows = [(line.part, row) for line in lines for row in line.rows]
    rows = sorted(rows, key=lambda found: (found[1].client, found[0].label))[:MOST_ROWS]
    rate_heads, rates = _rate_columns([measure(part, [row]) for part, row in rows])
    heads = [*map(heading, keys), "client", "budget MB", "method", "tuned on", "model MB"]
    return table_of(
        [*heads, "mean bits", *rate_heads, "errors", "of"],
        [
            [
                *_settings(part, keys),
                Cell(row.client),
                _number(row.budget_bytes / MB, digits),
                Cell(row.method),
                Cell("own" if source_of(row) == OWN else row.tuned_on),
                _number(row.file_bytes / MB, digits),
                _number(row.mean_bits, 2),
                *rate,
                *_counts(row),
            ]
            for (part, row), rate in zip(rows, rates, strict=True)
        ],
    )


def comparisons_table(compared: Sequence[Compared]) -> HtmlTable:
    """Return one row a comparison: the difference, its interval and the verdict."""
    several = any(c.pair.settings for c in compared)
    heads = [*(["settings"] if several else []), "first", "second", "difference, points"]
    heads += [_INTERVAL, "the first is", "more clips"]
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


def fleet_table(parts: Sequence[Part]) -> HtmlTable:
    """Return one row a client of each run: its budgets, the sizes of its models, its test clips."""
    of_client: dict[tuple[str, str], list[Row]] = {}
    failed = set()
    for part in parts:
        run = str(part.settings.get(RUN, ""))
        for failure in part.failures:
            failed.add((run, failure.client))
            of_client.setdefault((run, failure.client), [])
        for row in part.rows:
            of_client.setdefault((run, row.client), []).append(row)
    several = any(run for run, _ in of_client)
    rows = []
    for (run, client), found in sorted(of_client.items()):
        small = [row.file_bytes / MB for row in found if row.allocation != FULL_PRECISION]
        budgets = [row.budget_bytes / MB for row in found]
        digits = size_digits(small)
        state = "failed" if not found else "in part" if (run, client) in failed else "finished"
        cells = [Cell(client), _span(budgets, digits), _span(small, digits)]
        cells += [_span([float(row.clips) for row in found], 0), Cell(state)]
        rows.append([Cell(run), *cells] if several else cells)
    heads = ["client", "budget MB", "compressed model MB", "test clips", "state"]
    return table_of([RUN, *heads] if several else heads, rows)


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
                Cell(f"{len(clients[stage, field]):,}", len(clients[stage, field])),
                Cell(_bytes_span(found), max(found)),
                Cell(f"{sum(found):,}", sum(found)),
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


def setting_keys(parts: Iterable[Part]) -> list[str]:
    """Return the settings that tell parts from each other, in order."""
    return list(dict.fromkeys(key for part in parts for key in part.settings))


def table_of(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> HtmlTable:
    """Return a table whose columns of numbers are known for such."""
    numeric = tuple(
        any(row[i].value is not None for row in rows)
        and all(row[i].value is not None or row[i].text in ("-", "") for row in rows)
        for i in range(len(heads))
    )
    return HtmlTable(tuple(heads), numeric, tuple(tuple(row) for row in rows))


def _rate_columns(rates: Sequence[Rate]) -> tuple[list[str], list[list[Cell]]]:
    """Return heads and cells of rates: a column a kind, and one of intervals if any is known."""
    heads: list[str] = []
    cells: list[list[Cell]] = [[] for _ in rates]
    for kind in dict.fromkeys(rate.kind for rate in rates):
        known = any(rate.low is not None for rate in rates if rate.kind == kind)
        heads += [f"{kind} %", _INTERVAL] if known else [f"{kind} %"]
        for row, rate in zip(cells, rates, strict=True):
            own = rate.kind == kind
            row.append(_number(rate.value if own else None))
            if known:
                said = rate.interval().strip() if own else ""
                row.append(Cell(said or "-", rate.low if own else None))
    return heads, cells


def _settings(part: Part, keys: Sequence[str]) -> list[Cell]:
    values = [part.settings.get(key) for key in keys]
    return [
        Cell(plain_value(v), v if isinstance(v, int | float) else None)
        if v is not None
        else Cell("-")
        for v in values
    ]


def _clients_cell(line: Line) -> Cell:
    done, every = len({row.client for row in line.rows}), len(line.part.clients)
    return Cell(f"{done:,}" if done == every else f"{done:,} of {every:,}", done)


def _counts(row: Row) -> list[Cell]:
    if row.words is not None:
        wrong, of = row.errors or 0, row.words
    else:
        wrong, of = row.clips - (row.correct or 0), row.clips
    return [Cell(f"{wrong:,}", wrong), Cell(f"{of:,}", of)]


def _number(value: float | None, digits: int = 1) -> Cell:
    return Cell(number(value, digits), value)


def _span(values: Sequence[float], digits: int = 1) -> Cell:
    return Cell(span(values, digits), max(values)) if values else Cell("-")


def _digits(lines: Iterable[Line]) -> int:
    return size_digits(
        x for line in lines if line.allocation != FULL_PRECISION for x in line.megabytes
    )


def _bytes_span(values: Sequence[int]) -> str:
    least, most = f"{min(values):,}", f"{max(values):,}"
    return least if least == most else f"{least}–{most}"


def _setting(value: Any) -> str:
    return plain_value(value) or "-"
