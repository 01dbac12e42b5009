"""The fleet as a run prints it: one line per device class, and one for the server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsim.base.units import MB, count_words, size_words, time_words
from fedsim.fleet.timeline import OUTCOMES, STRAGGLER, ClassTimes, ServerTotals, summarize
from fedsim.results.labels import plain_value
from fedsim.results.table import new_table
from fedsim.results.timed import TimedRound

_LEGEND = (
    "delivered: the model was calibrated before the round closed",
    "ready: time until then on the virtual clock; p90: of nine in ten delivered clients",
    "MB down, J: totals of the class; J is the energy of computing and radio",
)


def print_fleet(timed: TimedRound, console: Console) -> None:
    """Print a round on the virtual clock by device class."""
    classes = summarize(timed.timelines)
    table = _table(["device"])
    for line in classes:
        table.add_row(Text(line.device), *_cells(line))
    console.print(Text(f"\nFleet on the virtual clock, {timed.model}", style="bold"))
    console.print(table)
    console.print(Text("\n".join(["", clients_line(classes[-1]), server_line(timed.server)])))
    console.print(Text("\n".join(["", *_LEGEND]), style="dim"))


def print_fleets(rounds: Sequence[tuple[dict[str, Any], TimedRound]], console: Console) -> None:
    """Print one line for the whole fleet per combination of settings."""
    table = _table([key.split(".")[-1] for key in rounds[0][0]])
    for settings, timed in rounds:
        every = summarize(timed.timelines)[-1]
        table.add_row(*(Text(plain_value(v)) for v in settings.values()), *_cells(every))
    models = ", ".join(dict.fromkeys(timed.model for _, timed in rounds))
    console.print(Text(f"\nFleet on the virtual clock, {models}", style="bold"))
    console.print(table)
    console.print(Text("\n".join(["", *_LEGEND]), style="dim"))


def clients_line(every: ClassTimes) -> str:
    """Return in one sentence how the clients of a round ended, and how many were stragglers."""
    ended = [f"{n:,} {outcome}" for outcome in OUTCOMES if (n := getattr(every, outcome))]
    sentence = f"Clients: {', '.join(ended)}"
    if every.stragglers:
        taken = f"took more than {STRAGGLER} times the median"
        sentence += f"; {every.stragglers:,} of the delivered {taken}"
    if every.late or every.battery:
        sentence += "; the results include clients that were late or ran out of battery"
    return f"{sentence}."


def server_line(server: ServerTotals) -> str:
    """Return in one sentence what left the server, how many waited, and when the round ended."""
    sent, full, shared = (
        size_words(n) for n in (server.sent_bytes, server.full_bytes, server.shared_bytes)
    )
    waited = count_words(server.peak_queue, "client") if server.peak_queue else "no client"
    queue = f"at most {waited}" if server.peak_queue else waited
    closed = server.closed_s
    ended = f"the last client ended after {time_words(server.end_s)}"
    if closed is not None:
        ended = f"the round closed after {time_words(closed)}, and {ended}"
    return (
        f"Server: {sent} sent ({full} if every device downloaded everything, {shared} if each"
        f" distinct blob was sent once); {queue} waited for a planner; {ended}."
    )


def _table(keys: Iterable[str]) -> Table:
    table = new_table()
    for key in keys:
        table.add_column(key, vertical="bottom")
    for heading in ("clients", "delivered", "ready\nmedian", "ready\np90", "MB down", "J"):
        table.add_column(heading, justify="right", no_wrap=True, vertical="bottom")
    return table


def _cells(line: ClassTimes) -> tuple[str, ...]:
    return (
        f"{line.clients:,}",
        f"{line.delivered:,}",
        time_words(line.ready_median_s),
        time_words(line.ready_p90_s),
        f"{line.down_bytes / MB:,.0f}",
        f"{line.joules:,.0f}",
    )
