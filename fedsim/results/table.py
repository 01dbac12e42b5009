"""The table that a run prints: one line a method, then one line a client, then what failed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsim.base.units import MB
from fedsim.results.endings import endings, sentences
from fedsim.results.records import Failure
from fedsim.results.rows import Row

_MOST_CLIENTS = 12
_MOST_FAILURES = 5

Line = tuple[str, str]
"""What one line of the table is about: the method, and whose clips it was tuned on."""


def stdout_console() -> Console:
    """Return a console on stdout: as wide as a terminal, or as COLUMNS says; a file gets 120."""
    fixed = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if fixed else 120)


def print_table(rows: Sequence[Row], failures: Sequence[Failure], console: Console) -> None:
    """Print the results of a run for a reader who has not read the paper.

    The block with a line for each client is left out where it would not fit. Without a terminal
    the output has no colours.

    Args:
        rows: all results; rates are pooled, such as all errors over all words.
        failures: the clients that failed, and why.
        console: where to print, and how wide.
    """
    if rows:
        lines = _lines(rows)
        console.print(_summary(lines, len({row.client for row in rows})))
        console.print(_legend(rows))
        _print_clients(lines, console)
    else:
        console.print("No client finished, so there is no table.")
    if failures:
        _print_failures({row.client for row in rows}, failures, console)


def print_matrix(
    cells: Sequence[tuple[dict[str, Any], Sequence[Row], Sequence[Failure]]], console: Console
) -> None:
    """Print one line for each combination of settings and method, then what failed where.

    Args:
        cells: settings, results and failures of each combination.
        console: where to print, and how wide.
    """
    every = [row for _, rows, _ in cells for row in rows]
    if every:
        table = new_table()
        keys = list(cells[0][0])
        for key in keys:
            table.add_column(key.split(".")[-1], justify="right")
        table.add_column("method", no_wrap=True)
        table.add_column("tuned on")
        for heading in ("model MB", "mean bits", *(name for name, _ in _rates(every)), "clients"):
            table.add_column(heading, justify="right")
        for settings, rows, _ in cells:
            lines = _lines(rows)
            clients = len({row.client for row in rows})
            for i, (line, found) in enumerate(lines.items()):
                values = [plain(settings[key]) if i == 0 else "" for key in keys]
                table.add_row(*values, *_cells(line, found, every, clients))
        console.print(table)
        console.print(_legend(every))
    else:
        console.print("No client finished, so there is no table.")
    for settings, rows, failures in cells:
        if failures:
            console.print(Text(", ".join(f"{k}={plain(v)}" for k, v in settings.items())))
            _print_failures({row.client for row in rows}, failures, console)


def print_statements(sentences: Sequence[str], console: Console) -> None:
    """Print what was promised about what left the devices, each sentence once."""
    if sentences:
        console.print(Text("\nWhat left the devices", style="bold"))
        for sentence in dict.fromkeys(sentences):
            console.print(Text(f"  {sentence}"), soft_wrap=True)


def plain(value: Any) -> str:
    """Return a setting's value as it is printed."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _lines(rows: Sequence[Row]) -> dict[Line, list[Row]]:
    """Return the rows of each line of the table, what others are compared with first."""
    first = ("fp32", "uniform")
    lines: dict[Line, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (_rank(row.allocation, first), row.method)):
        for source in ("-", "own", "other"):  # in this order within a method
            lines.setdefault((row.method, source), [])
        lines[row.method, _source(row)].append(row)
    return {line: found for line, found in lines.items() if found}


def _rank(word: str, first: Sequence[str]) -> int:
    return first.index(word) if word in first else len(first)


def _source(row: Row) -> str:
    if row.tuned_on in ("-", "own", "other"):
        return row.tuned_on
    return "own" if row.tuned_on == row.client else "other"


def _summary(lines: dict[Line, list[Row]], clients: int) -> Table:
    every = [row for rows in lines.values() for row in rows]
    table = new_table()
    table.add_column("method", no_wrap=True)
    table.add_column("tuned on")
    for heading in ("model MB", "mean bits", *(name for name, _ in _rates(every)), "clients"):
        table.add_column(heading, justify="right")
    for (method, source), rows in lines.items():
        table.add_row(*_cells((method, source), rows, every, clients))
    return table


def _cells(
    line: Line, rows: Sequence[Row], every: Sequence[Row], clients: int
) -> tuple[Text | str, ...]:
    """Return what stands in one line of the table."""
    method, source = line
    done = len({row.client for row in rows})
    return (
        Text(method),
        source,
        _span([row.file_bytes / MB for row in rows], digits=1),
        _span([row.mean_bits for row in rows], digits=2),
        *(rate(rows) for _, rate in _rates(every)),
        str(done) if done == clients else f"{done} of {clients}",
    )


def _rates(rows: Iterable[Row]) -> list[tuple[str, Callable[[Sequence[Row]], str]]]:
    """Return heading and formatter of what these rows measure: word errors, accuracy or both."""
    rows = list(rows)
    rates: list[tuple[str, Callable[[Sequence[Row]], str]]] = []
    if any(row.words is not None for row in rows):
        rates.append(("WER %", word_error_rate))
    if any(row.correct is not None for row in rows):
        rates.append(("accuracy %", accuracy))
    return rates


def word_error_rate(rows: Sequence[Row]) -> str:
    """Return the rows' word errors over their words in percent, or `-` if there are no words."""
    words = sum(row.words or 0 for row in rows)
    return f"{100 * sum(row.errors or 0 for row in rows) / words:.1f}" if words else "-"


def accuracy(rows: Sequence[Row]) -> str:
    """Return the rows' right clips over their clips in percent, or `-` if there are none."""
    counted = [row for row in rows if row.correct is not None]
    clips = sum(row.clips for row in counted)
    return f"{100 * sum(row.correct or 0 for row in counted) / clips:.1f}" if clips else "-"


def _span(values: Sequence[float], digits: int) -> str:
    least, most = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return least if least == most else f"{least}-{most}"


def new_table() -> Table:
    """Return an empty table in the look that all printed tables share."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)


def _print_clients(lines: dict[Line, list[Row]], console: Console) -> None:
    """Print a block for each rate, a client a line; or a method a line, if only that fits."""
    every = [row for rows in lines.values() for row in rows]
    budgets = {row.client: row.budget_bytes for row in every}
    if not 1 < len(budgets) <= _MOST_CLIENTS:
        return
    for heading, rate in _rates(every):
        cells = {
            (line, client): rate([row for row in rows if row.client == client])
            for line, rows in lines.items()
            for client in budgets
        }
        for table in (_by_client(lines, budgets, cells), _by_method(lines, budgets, cells)):
            if _width(table, console) <= console.width:
                console.print(Text(f"\n{heading} by client", style="bold"))
                console.print(table)
                break


def _width(table: Table, console: Console) -> int:
    unbounded = console.options.update(max_width=10_000)
    return console.measure(table, options=unbounded).maximum


def _by_client(
    lines: Iterable[Line], budgets: dict[str, int], cells: dict[tuple[Line, str], str]
) -> Table:
    table = new_table()
    table.add_column("client", no_wrap=True, vertical="bottom")
    table.add_column("budget\nMB", justify="right", no_wrap=True)
    for method, source in lines:
        words = [*method.split("/"), *([] if source == "-" else [source])]
        table.add_column(Text("\n".join(words)), justify="right", no_wrap=True)
    for client in sorted(budgets):
        budget = f"{budgets[client] / MB:.1f}"
        table.add_row(Text(client), budget, *(cells[line, client] for line in lines))
    return table


def _by_method(
    lines: Iterable[Line], budgets: dict[str, int], cells: dict[tuple[Line, str], str]
) -> Table:
    table = new_table()
    table.add_column("method", no_wrap=True)
    table.add_column("tuned on", no_wrap=True)
    for client in sorted(budgets):
        heading = f"{client}\n{budgets[client] / MB:.1f} MB"
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for line in lines:
        method, source = line
        table.add_row(Text(method), source, *(cells[line, client] for client in sorted(budgets)))
    return table


def _legend(rows: Sequence[Row]) -> Text:
    said = []
    if any("/" in row.method for row in rows):
        said.append("method: how layers get bit depths / how activation ranges are set")
    if any(row.allocation == "fp32" for row in rows):
        said.append("fp32: the full-precision model, for comparison")
    if any(_source(row) != "-" for row in rows):
        said.append("tuned on: the client's own clips, or those of another client")
    said.append("model MB: the file that the client receives, 1 MB = 2^20 bytes")
    names = [name for name, _ in _rates(rows)]
    if "WER %" in names:
        said.append("WER: word errors over words of all clients together; less is better")
    if "accuracy %" in names:
        said.append("accuracy: right clips over clips of all clients together; more is better")
    return Text("\n".join(["", *said]), style="dim")


def _print_failures(finished: set[str], failures: Sequence[Failure], console: Console) -> None:
    """Print who failed, then who finished but lacks results that another's failure cost."""
    heading = ", ".join(sentences(endings(finished, failures).values()))
    console.print(Text(f"\n{heading}", style="bold red"))
    failures = sorted(failures, key=lambda failure: failure.client in finished)
    for failure in failures[:_MOST_FAILURES]:
        sentence = f"  {failure.client} ({failure.stage}): {failure.reason}"
        console.print(Text(sentence), soft_wrap=True)  # one line each, also where that is too long
    more = len(failures) - _MOST_FAILURES
    if more > 0:
        console.print(f"  and {more:,} more: see the table failures in ledger.sqlite")
