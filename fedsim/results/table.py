"""The table that a run prints: one line per method, one per client, then what failed."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsim.base.units import MB
from fedsim.quant.formats import OWN, file_words
from fedsim.quant.runtimes import RUNTIMES
from fedsim.results.endings import endings, sentences
from fedsim.results.labels import plain_value
from fedsim.results.lines import (
    UNITS,
    Kind,
    Line,
    Source,
    corpus_rate,
    count_loops,
    has_loops,
    kind_of,
    kinds_of,
    loop_headings,
    number,
    rate_without_loops,
    size_heading,
    source_of,
    span,
    table_lines,
    texts_phrase,
)
from fedsim.results.rare import HEADING, has_rare, rare_phrase, rare_share
from fedsim.results.records import Failure
from fedsim.results.rows import Row
from fedsim.scenario.methods import FULL_PRECISION, NOBODY

_MAX_CLIENTS = 12
_MAX_FAILURES = 5


def stdout_console() -> Console:
    """Return a console on stdout, as wide as the terminal or as COLUMNS says; 120 for a file."""
    fixed = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if fixed else 120)


def print_table(rows: Sequence[Row], failures: Sequence[Failure], console: Console) -> None:
    """Print the results of a run.

    The block with one line per client is left out if it does not fit. Output that is not to a
    terminal has no colours.

    Args:
        rows: all results; rates are pooled: all errors over all words.
        failures: the clients that failed, and why.
        console: where to print, and how wide.
    """
    if rows:
        lines = table_lines(rows)
        console.print(_summary(lines, rows))
        console.print(_legend(rows))
        _print_clients(lines, console)
    else:
        console.print("No client finished, so there is no table.")
    if failures:
        _print_failures({row.client for row in rows}, failures, console)


def print_matrix(
    cells: Sequence[tuple[dict[str, Any], Sequence[Row], Sequence[Failure]]], console: Console
) -> None:
    """Print one line per combination of settings and method, then what failed in which.

    Args:
        cells: settings, results and failures of each combination.
        console: where to print, and how wide.
    """
    all_rows = [row for _, rows, _ in cells for row in rows]
    if all_rows:
        table = new_table()
        keys = list(cells[0][0])
        for key in keys:
            table.add_column(key.split(".")[-1], justify="right")
        table.add_column("method", no_wrap=True)
        table.add_column("tuned on")
        for heading in _headings(all_rows):
            table.add_column(heading, justify="right")
        for settings, rows, _ in cells:
            clients = len({row.client for row in rows})
            for i, line in enumerate(table_lines(rows)):
                values = [plain_value(settings[key]) if i == 0 else "" for key in keys]
                table.add_row(*values, *_cells(line, all_rows, clients))
        console.print(table)
        console.print(_legend(all_rows))
    else:
        console.print("No client finished, so there is no table.")
    for settings, rows, failures in cells:
        if failures:
            console.print(Text(", ".join(f"{k}={plain_value(v)}" for k, v in settings.items())))
            _print_failures({row.client for row in rows}, failures, console)


def print_statements(sentences: Sequence[str], console: Console) -> None:
    """Print the privacy statements, each sentence once."""
    if sentences:
        console.print(Text("\nWhat left the devices", style="bold"))
        for sentence in dict.fromkeys(sentences):
            console.print(Text(f"  {sentence}"), soft_wrap=True)


def _summary(lines: Sequence[Line], rows: Sequence[Row]) -> Table:
    table = new_table()
    table.add_column("method", no_wrap=True)
    table.add_column("tuned on")
    for heading in _headings(rows):
        table.add_column(heading, justify="right")
    clients = len({row.client for row in rows})
    for line in lines:
        table.add_row(*_cells(line, rows, clients))
    return table


def _headings(rows: Sequence[Row]) -> list[str]:
    rates = [f"{kind} %" for kind in kinds_of(rows)]
    return [
        size_heading(rows),
        "mean bits",
        *rates,
        *loop_headings(rows) * has_loops(rows),
        *[HEADING] * has_rare(rows),
        "clients",
    ]


def _cells(line: Line, all_rows: Sequence[Row], clients: int) -> tuple[Text | str, ...]:
    """Return one line of the table with these rows."""
    done = line.clients
    loops = (number(count_loops(line.rows), 0), number(rate_without_loops(line.rows)))
    return (
        Text(line.method),
        line.source.value,
        span(line.megabytes, digits=1, dash="-"),
        span(line.mean_bits, digits=2, dash="-"),
        *(_rate(line.rows, kind) for kind in kinds_of(all_rows)),
        *loops * has_loops(all_rows),
        *[number(rare_share(line.rows))] * has_rare(all_rows),
        str(done) if done == clients else f"{done} of {clients}",
    )


def _rate(rows: Sequence[Row], kind: Kind) -> str:
    return number(corpus_rate(rows, kind))


def new_table() -> Table:
    """Return an empty table with the style of all printed tables."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)


def _print_clients(lines: Sequence[Line], console: Console) -> None:
    """Print one block per rate, with one line per client, or per method if only that fits."""
    rows = [row for line in lines for row in line.rows]
    budgets = {row.client: row.budget_bytes for row in rows}
    if not 1 < len(budgets) <= _MAX_CLIENTS:
        return
    for kind in kinds_of(rows):
        rates = [
            {
                client: _rate([row for row in line.rows if row.client == client], kind)
                for client in sorted(budgets)
            }
            for line in lines
        ]
        for table in (_by_client(lines, budgets, rates), _by_method(lines, budgets, rates)):
            if _width(table, console) <= console.width:
                console.print(Text(f"\n{kind} % by client", style="bold"))
                console.print(table)
                break


def _width(table: Table, console: Console) -> int:
    unbounded = console.options.update(max_width=10_000)
    return console.measure(table, options=unbounded).maximum


def _by_client(
    lines: Sequence[Line], budgets: Mapping[str, int], rates: Sequence[Mapping[str, str]]
) -> Table:
    table = new_table()
    table.add_column("client", no_wrap=True, vertical="bottom")
    table.add_column("budget\nMB", justify="right", no_wrap=True)
    for line in lines:
        words = line.method.split("/")
        if line.source is not Source.NOBODY:
            words.append(line.source.value)
        table.add_column(Text("\n".join(words)), justify="right", no_wrap=True)
    for client in sorted(budgets):
        budget = f"{budgets[client] / MB:.1f}"
        table.add_row(Text(client), budget, *(rate[client] for rate in rates))
    return table


def _by_method(
    lines: Sequence[Line], budgets: Mapping[str, int], rates: Sequence[Mapping[str, str]]
) -> Table:
    table = new_table()
    table.add_column("method", no_wrap=True)
    table.add_column("tuned on", no_wrap=True)
    for client in sorted(budgets):
        heading = f"{client}\n{budgets[client] / MB:.1f} MB"
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for line, rate in zip(lines, rates, strict=True):
        table.add_row(Text(line.method), line.source.value, *rate.values())
    return table


def _legend(rows: Sequence[Row]) -> Text:
    legend = []
    if any("/" in row.method for row in rows):
        more = any(row.method.count("/") > 1 for row in rows)
        legend.append(
            "method: how layers get bit depths / how their inputs are quantized"
            + (" / rounding and whose moments, where not as usual" if more else "")
        )
    if any(row.allocation == FULL_PRECISION for row in rows):
        legend.append(f"{FULL_PRECISION}: the full-precision model, for comparison")
    if any(source_of(row) is not Source.NOBODY for row in rows):
        legend.append("tuned on: the client's own clips, or those of another client")
    runtimes = sorted({row.runtime for row in rows} & {*RUNTIMES})
    legend += [f"{name}: {RUNTIMES[name].meaning}" for name in runtimes]
    formats = sorted({row.format for row in rows} - {OWN, NOBODY})
    what = f"all files of the {file_words(' or '.join(formats))}" if formats else "the file"
    legend.append(f"model MB: {what} that the client receives, 1 MB = 2^20 bytes")
    kinds = kinds_of(rows)
    for kind in kinds:
        if kind != "accuracy":
            unit = UNITS[kind]
            texts = texts_phrase(row for row in rows if kind_of([row]) == kind)
            legend.append(
                f"{kind}: {unit} errors over {unit}s of all clients together, {texts}; lower is"
                " better"
            )
    if has_loops(rows):
        legend.append(
            "looped: transcripts that were cut because the model repeated itself;"
            f" {loop_headings(rows)[1]}: of the other clips"
        )
    if has_rare(rows):
        legend.append(
            f"{HEADING}: of the {rare_phrase(rows)}, those that were substituted or deleted;"
            " lower is better"
        )
    if "accuracy" in kinds:
        legend.append(
            "accuracy: correct clips over clips of all clients together; higher is better"
        )
    return Text("\n".join(["", *legend]), style="dim")


def _print_failures(finished: set[str], failures: Sequence[Failure], console: Console) -> None:
    """Print the clients that failed, then those that lack results because another failed."""
    heading = ", ".join(sentences(endings(finished, failures).values()))
    console.print(Text(f"\n{heading}", style="bold red"))
    failures = sorted(failures, key=lambda failure: failure.client in finished)
    for failure in failures[:_MAX_FAILURES]:
        sentence = f"  {failure.client} ({failure.stage}): {failure.reason}"
        console.print(
            Text(sentence), soft_wrap=True
        )  # one line each, even if longer than the console
    more = len(failures) - _MAX_FAILURES
    if more > 0:
        console.print(f"  and {more:,} more: see the table failures in ledger.sqlite")
