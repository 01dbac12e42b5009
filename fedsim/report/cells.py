"""HTML tables and their cells: what a cell shows, and by what it is sorted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedsim.results.labels import plain_value
from fedsim.results.lines import (
    count_loops,
    has_loops,
    loop_headings,
    number,
    rate_without_loops,
    span,
)
from fedsim.results.rare import HEADING, RareRate
from fedsim.results.rates import Rate
from fedsim.results.rows import Row
from fedsim.results.runs import Part

INTERVAL = "95 % interval"


@dataclass(frozen=True)
class Cell:
    """One cell of an HTML table: its text, and the number to sort by; None sorts by the text."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class HtmlTable:
    """Headings, whether each column is numeric, and rows of cells."""

    heads: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Cell, ...], ...]
    total: int
    """The number of rows before the table was cut off."""


def setting_keys(parts: Iterable[Part]) -> list[str]:
    """Return the keys of the settings that tell parts apart, in order."""
    return list(dict.fromkeys(key for part in parts for key in part.settings))


def table_of(
    heads: Sequence[str], rows: Sequence[Sequence[Cell]], total: int | None = None
) -> HtmlTable:
    """Return a table of these rows; `total` is their number before they were cut off."""
    numeric = tuple(
        any(row[i].value is not None for row in rows)
        and all(row[i].value is not None or row[i].text in ("-", "") for row in rows)
        for i in range(len(heads))
    )
    shown = tuple(tuple(row) for row in rows)
    return HtmlTable(tuple(heads), numeric, shown, len(shown) if total is None else total)


def rate_columns(rates: Sequence[Rate]) -> tuple[list[str], list[list[Cell]]]:
    """Return headings and cells of rates: one column per kind, and one of its intervals."""
    heads: list[str] = []
    cells: list[list[Cell]] = [[] for _ in rates]
    for kind in dict.fromkeys(rate.kind for rate in rates):
        known = any(rate.low is not None for rate in rates if rate.kind == kind)
        heads += [f"{kind} %", INTERVAL] if known else [f"{kind} %"]
        for row, rate in zip(cells, rates, strict=True):
            own = rate.kind == kind
            row.append(number_cell(rate.value if own else None))
            if known:
                interval = rate.interval().strip() if own else ""
                row.append(Cell(interval or "-", rate.low if own else None))
    return heads, cells


def loop_columns(groups: Sequence[Sequence[Row]]) -> tuple[list[str], list[list[Cell]]]:
    """Return headings and cells of what looped, for each group of rows; none if nothing did."""
    if not any(map(has_loops, groups)):
        return [], [[] for _ in groups]
    counts = [count_loops(rows) for rows in groups]
    cells = [Cell("-") if count is None else count_cell(count) for count in counts]
    rates = [number_cell(rate_without_loops(rows)) for rows in groups]
    heads = loop_headings(row for rows in groups for row in rows)
    return list(heads), [list(pair) for pair in zip(cells, rates, strict=True)]


def rare_columns(rates: Sequence[RareRate | None]) -> tuple[list[str], list[list[Cell]]]:
    """Return headings and cells of errors on rare words; none if they were not counted."""
    if not any(rates):
        return [], [[] for _ in rates]
    known = any(rate and rate.low is not None for rate in rates)
    cells = []
    for rate in rates:
        value, low, high = (rate.value, rate.low, rate.high) if rate else (None, None, None)
        interval = "-" if low is None or high is None else f"[{low:.1f}, {high:.1f}]"
        cells.append([number_cell(value), *[Cell(interval, low)] * known])
    return [HEADING, *[INTERVAL] * known], cells


def settings_cells(part: Part, keys: Sequence[str]) -> list[Cell]:
    """Return one cell for each of the settings `keys` of a part."""
    values = [part.settings.get(key) for key in keys]
    return [
        Cell(plain_value(v), v if isinstance(v, int | float) else None)
        if v is not None
        else Cell("-")
        for v in values
    ]


def number_cell(value: float | None, digits: int = 1) -> Cell:
    """Return a number with `digits` decimals, `-` for None."""
    return Cell(number(value, digits), value)


def span_cell(values: Sequence[float], digits: int = 1) -> Cell:
    """Return the range of some numbers, sorted by its maximum."""
    return Cell(span(values, digits), max(values)) if values else Cell("-")


def count_cell(count: float) -> Cell:
    """Return a whole number with commas between thousands."""
    return Cell(f"{count:,.0f}", count)
