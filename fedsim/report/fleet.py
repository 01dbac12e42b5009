"""The fleet in a report: which device classes got a model, when, and at what cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fedsim.base.units import MB, time_words
from fedsim.fleet.timeline import FLEET, OUTCOMES, ClassTimes, summarize
from fedsim.report.cells import (
    INTERVAL,
    Cell,
    HtmlTable,
    count_cell,
    number_cell,
    setting_keys,
    settings_cells,
    span_cell,
    table_of,
)
from fedsim.report.findings import difference, points
from fedsim.results.labels import heading
from fedsim.results.lines import Source, size_digits
from fedsim.results.rates import PartLine, lines_of
from fedsim.results.runs import Part
from fedsim.results.timed import TimedRound
from fedsim.scenario.clock import ClockSettings

CLOCK = (
    "Times are computed by a virtual clock; none was measured. The clock counts the multiplications"
    " of layers (MACs), reading from storage, transfers with their latency and the server’s shared"
    " egress, waiting for a planner and for the hours in which a device is available, timeouts and"
    " retries; its joules are those of computing and of the radio. It does not count idle power,"
    " throttling, charging, the radio’s power after a transfer, packet loss, or the products within"
    " attention."
)
_SENSING = {"full": "full", "streamed": "streamed", "proxy": "proxy", None: "cannot"}
_MAX_SENTENCES = 4  # one per part

T = TypeVar("T")
Classes = Sequence[tuple[Part, TimedRound, Sequence[ClassTimes]]]
"""Parts with their rounds, and the summaries of these by device class."""


@dataclass(frozen=True)
class Section:
    """The section of a report on the fleet; tables have one row per device class of each part."""

    sentences: tuple[str, ...]
    outcomes: HtmlTable
    times: HtmlTable
    rates: HtmlTable
    sensing: HtmlTable
    servers: HtmlTable


def fleet_section(parts: Sequence[Part]) -> Section | None:
    """Return the section on the parts whose round was timed, or None if there are none."""
    timed = [(part, part.timed) for part in parts if part.timed is not None]
    if not timed:
        return None
    keys = setting_keys(part for part, _ in timed)
    classes = [(part, round_, summarize(round_.timelines)) for part, round_ in timed]
    return Section(
        sentences=tuple(_sentence(p, r, lines[-1]) for p, r, lines in classes[:_MAX_SENTENCES]),
        outcomes=_outcomes(classes, keys),
        times=_times(classes, keys),
        rates=_rates([part for part, _ in timed], keys),
        sensing=_sensing(timed, keys),
        servers=_servers(timed, keys),
    )


def _sentence(part: Part, timed: TimedRound, every: ClassTimes) -> str:
    label = f"{part.label}: " if part.label else ""
    sentence = f"{label}{every.delivered:,} of {every.clients:,} clients got their personalized"
    sentence += f" model ({timed.model})"
    if every.ready_median_s is not None:
        half, nine_tenths = time_words(every.ready_median_s), time_words(every.ready_p90_s)
        sentence += f", half of them within {half} and nine in ten within {nine_tenths}"
    return f"{sentence}. {_policy(part.scenario.clock)}"


def _outcomes(classes: Classes, keys: Sequence[str]) -> HtmlTable:
    """Return how many clients of each class got a model, and why the others did not."""
    rows = []
    for part, timed, lines in classes:
        budgets = _by_class(timed, {c: n / MB for c, n in timed.budgets.items()})
        digits = size_digits(budgets[FLEET])
        for line in lines:
            counts = [count_cell(getattr(line, outcome)) for outcome in OUTCOMES]
            cells = [Cell(line.device), count_cell(line.clients)]
            cells += [span_cell(budgets[line.device], digits), *counts]
            rows.append([*settings_cells(part, keys), *cells])
    heads = [*map(heading, keys), "device", "clients", "budget MB"]
    return table_of([*heads, *OUTCOMES], rows)


def _times(classes: Classes, keys: Sequence[str]) -> HtmlTable:
    """Return when models were ready, and what they cost."""
    rows = []
    for part, _, lines in classes:
        for line in lines:
            ready = (line.ready_median_s, line.ready_p90_s, line.ready_max_s)
            cells = [Cell(line.device), *(Cell(time_words(s), s) for s in ready)]
            cells += [count_cell(line.stragglers), count_cell(line.retries)]
            cells += [_size_cell(line.down_bytes), _size_cell(line.up_bytes)]
            cells += [count_cell(line.joules)]
            rows.append([*settings_cells(part, keys), *cells])
    heads = [*map(heading, keys), "device", "ready, median", "nine in ten", "last"]
    return table_of([*heads, "stragglers", "retries", "MB down", "MB up", "joules"], rows)


def _rates(parts: Sequence[Part], keys: Sequence[str]) -> HtmlTable:
    """Return the rates of the timed model and of full precision by device class."""
    pairs = [(part, *pair) for part in parts for pair in _pairs(part)]
    kinds = dict.fromkeys(quantized.rate.kind for _, _, _, quantized in pairs)
    heads = [*map(heading, keys), "device", "clients"]
    rows = [
        [*settings_cells(part, keys), Cell(device), count_cell(quantized.clients)]
        for part, device, _, quantized in pairs
    ]
    for kind in kinds:
        heads += [f"fp32, {kind} %", INTERVAL, f"timed, {kind} %", INTERVAL, "difference", INTERVAL]
        for row, (_, _, full, quantized) in zip(rows, pairs, strict=True):
            row += _compared(full, quantized) if quantized.rate.kind == kind else [Cell("-")] * 6
    return table_of(heads, rows)


def _pairs(part: Part) -> Iterator[tuple[str, PartLine | None, PartLine]]:
    """Yield each device class with two lines of its clients: full precision, or None, and the timed
    model."""
    assert part.timed is not None
    device = part.timed.devices
    lines = [line for line in lines_of(part) if line.source is not Source.OTHER]
    full = next((line for line in lines if line.is_full_precision), None)
    quantized = next((line for line in lines if line.method == part.timed.model), None)
    if quantized is None:
        return
    for name in (*sorted(set(device.values())), FLEET):
        clients = {client for client, of in device.items() if name in (of, FLEET)}
        timed = _of_clients(quantized, clients)
        if timed is not None:
            yield name, full and _of_clients(full, clients), timed


def _of_clients(line: PartLine, clients: set[str]) -> PartLine | None:
    rows = tuple(row for row in line.rows if row.client in clients)
    if len(rows) == len(line.rows):
        return line  # its rate may be cached
    return PartLine(line.method, line.source, rows, line.part) if rows else None


def _compared(full: PartLine | None, quantized: PartLine) -> list[Cell]:
    cells = [c for line in (full, quantized) for c in _rate_cells(line)]
    if full is None or full.rate.value is None or quantized.rate.value is None:
        return [*cells, Cell("-"), Cell("-")]
    result = difference(quantized, full)
    if result is None or result.low != result.low:  # NaN: one clip has no interval
        change = (quantized.rate.value - full.rate.value) / 100
        return [*cells, Cell(points(change), change), Cell("-")]
    interval = Cell(f"[{points(result.low)}, {points(result.high)}]", result.low)
    return [*cells, Cell(points(result.difference), result.difference), interval]


def _rate_cells(line: PartLine | None) -> list[Cell]:
    if line is None:
        return [Cell("-"), Cell("-")]
    return [number_cell(line.rate.value), Cell(line.rate.interval().strip() or "-", line.rate.low)]


def _sensing(timed: Sequence[tuple[Part, TimedRound]], keys: Sequence[str]) -> HtmlTable:
    """Return how many clients of each class held the full-precision model in each way."""
    modes = [m for m in _SENSING if any(m in t.sensing.values() for _, t in timed)]
    rows = []
    for part, round_ in timed:
        for device, sensing in _by_class(round_, round_.sensing).items():
            counts = Counter(sensing)
            cells = [Cell(device), *(count_cell(counts[mode]) for mode in modes)]
            rows.append([*settings_cells(part, keys), *cells])
    return table_of([*map(heading, keys), "device", *(_SENSING[m] for m in modes)], rows)


def _by_class(timed: TimedRound, values: Mapping[str, T]) -> dict[str, list[T]]:
    """Return device class -> the values of its clients; the last, `all`, has all values."""
    classes: dict[str, list[T]] = {name: [] for name in sorted(set(timed.devices.values()))}
    for client, device in timed.devices.items():
        classes[device].append(values[client])
    return classes | {FLEET: [value for group in classes.values() for value in group]}


def _servers(timed: Sequence[tuple[Part, TimedRound]], keys: Sequence[str]) -> HtmlTable:
    """Return what left the server, how many clients waited for it, and when the round ended."""
    rows = []
    for part, round_ in timed:
        server = round_.server
        sent = (server.sent_bytes, server.full_bytes, server.shared_bytes)
        cells = [_size_cell(n) for n in sent]
        cells += [_size_cell(server.received_bytes), count_cell(server.peak_queue)]
        cells += [Cell(time_words(s), s) for s in (server.closed_s, server.end_s)]
        rows.append([*settings_cells(part, keys), *cells])
    heads = ["MB sent", "everything to all", "each blob once", "MB received", "longest queue"]
    heads += ["round closed", "last client ended"]
    return table_of([*map(heading, keys), *heads], rows)


def _size_cell(n_bytes: int) -> Cell:
    """Return bytes in MB, with two significant digits below 1 MB, since messages are small."""
    megabytes = n_bytes / MB
    return Cell(f"{megabytes:,.1f}" if megabytes >= 1 else f"{megabytes:.2g}", megabytes)


def _policy(clock: ClockSettings) -> str:
    """Return the deadline policy as a sentence."""
    deadline = time_words(clock.deadline_s)
    goal = f"{100 * (clock.goal or 1):g} % of the clients are ready"
    match clock.policy:
        case "drop":
            return (
                f"The round closes after {deadline}; clients that are not ready by then are late."
            )
        case "extend":
            return f"The round closes after {deadline}, or later, as soon as {goal}."
        case "over_select":
            by = f", and after {deadline} at the latest" if clock.deadline_s else ""
            return f"The round closes as soon as {goal}{by}."
    return "The round waits for all clients."
