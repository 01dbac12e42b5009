"""The cells of HTML tables: what each shows, and how it sorts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedsim.results.labels import plain_value
from fedsim.results.lines import number, span
from fedsim.results.rates import Rate
from fedsim.results.runs import Part

INTERVAL = "95 % interval"


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
    total: int
    """Rows that there are; those beyond `rows` are left out."""


def setting_keys(parts: Iterable[Part]) -> list[str]:
    """Return the settings that tell parts from each other, in order."""
    return list(dict.fromkeys(key for part in parts for key in part.settings))


def table_of(
    heads: Sequence[str], rows: Sequence[Sequence[Cell]], total: int | None = None
) -> HtmlTable:
    """Return a table of these rows, which are some of `total` if that is given."""
    numeric = tuple(
        any(row[i].value is not None for row in rows)
        and all(row[i].value is not None or row[i].text in ("-", "") for row in rows)
        for i in range(len(heads))
    )
    shown = tuple(tuple(row) for row in rows)
    return HtmlTable(tuple(heads), numeric, shown, len(shown) if total is None else total)


def rate_columns(rates: Sequence[Rate]) -> tuple[list[str], list[list[Cell]]]:
    """Return heads and cells of rates: a column a kind, and one of intervals if any is known."""
    heads: list[str] = []
    cells: list[list[Cell]] = [[] for _ in rates]
    for kind in dict.fromkeys(rate.kind for rate in rates):
        known = any(rate.low is not None for rate in rates if rate.kind == kind)
        heads += [f"{kind} %", INTERVAL] if known else [f"{kind} %"]
        for row, rate in zip(cells, rates, strict=True):
            own = rate.kind == kind
            row.append(number_cell(rate.value if own else None))
            if known:
                said = rate.interval().strip() if own else ""
                row.append(Cell(said or "-", rate.low if own else None))
    return heads, cells


def settings_cells(part: Part, keys: Sequence[str]) -> list[Cell]:
    """Return a cell for each of the settings `keys` of a part."""
    values = [part.settings.get(key) for key in keys]
    return [
        Cell(plain_value(v), v if isinstance(v, int | float) else None)
        if v is not None
        else Cell("-")
        for v in values
    ]


def number_cell(value: float | None, digits: int = 1) -> Cell:
    """Return a number with so many decimals, `-` for None."""
    return Cell(number(value, digits), value)


def span_cell(values: Sequence[float], digits: int = 1) -> Cell:
    """Return the least and the greatest of some numbers; it sorts by the greatest."""
    return Cell(span(values, digits), max(values)) if values else Cell("-")


def count_cell(count: float) -> Cell:
    """Return a whole number with commas."""
    return Cell(f"{count:,.0f}", count)
