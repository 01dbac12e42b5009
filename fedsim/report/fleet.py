"""The fleet in a report: which classes of device got a model, when, and at what cost."""

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
from fedsim.results.lines import OTHER, Line, lines_of, size_digits
from fedsim.results.runs import Part
from fedsim.results.timed import TimedRound
from fedsim.scenario.clock import ClockSettings
from fedsim.scenario.methods import FULL_PRECISION

CLOCK = (
    "Times are those of a virtual clock, and nothing of them was measured. It counts computing from"
    " the multiplications of layers (MACs), reading from storage, transfers with their latency and"
    " the server’s shared egress, waiting for a planner and for the hours in which a device is"
    " available, time-outs and retries; and joules of computing and of the radio. It does not count"
    " idle power, throttling, charging, the tail of a radio’s power, packet loss, or the products"
    " within attention."
)
_SENSING = {"full": "full", "streamed": "streamed", "proxy": "proxy", None: "cannot"}
_MOST_SAID = 4  # parts about which there are sentences

T = TypeVar("T")
Classes = Sequence[tuple[Part, TimedRound, Sequence[ClassTimes]]]
"""Parts, their rounds, and those by class of device."""


@dataclass(frozen=True)
class Section:
    """What a report says of its fleet. Tables have a row for each class of device of each part."""

    sentences: tuple[str, ...]
    outcomes: HtmlTable
    times: HtmlTable
    rates: HtmlTable
    sensing: HtmlTable
    servers: HtmlTable


def fleet_section(parts: Sequence[Part]) -> Section | None:
    """Return what is to be said of the parts whose round was timed; None if there is none."""
    timed = [(part, part.timed) for part in parts if part.timed is not None]
    if not timed:
        return None
    keys = setting_keys(part for part, _ in timed)
    classes = [(part, round_, summarize(round_.timelines)) for part, round_ in timed]
    return Section(
        sentences=tuple(_sentence(p, r, found[-1]) for p, r, found in classes[:_MOST_SAID]),
        outcomes=_outcomes(classes, keys),
        times=_times(classes, keys),
        rates=_rates([part for part, _ in timed], keys),
        sensing=_sensing(timed, keys),
        servers=_servers(timed, keys),
    )


def _sentence(part: Part, timed: TimedRound, every: ClassTimes) -> str:
    told = f"{part.label}: " if part.label else ""
    said = f"{told}{every.delivered:,} of {every.clients:,} clients got their personalized model"
    said += f" ({timed.model})"
    if every.ready_median_s is not None:
        half, most = time_words(every.ready_median_s), time_words(every.ready_p90_s)
        said += f", half of these within {half}, nine of ten within {most}"
    return f"{said}. {_policy(part.scenario.clock)}"


def _outcomes(classes: Classes, keys: Sequence[str]) -> HtmlTable:
    """Return how many clients of each class got a model, and why the others did not."""
    rows = []
    for part, timed, found in classes:
        budgets = _by_class(timed, {c: n / MB for c, n in timed.budgets.items()})
        digits = size_digits(budgets[FLEET])
        for line in found:
            counts = [count_cell(getattr(line, outcome)) for outcome in OUTCOMES]
            cells = [Cell(line.device), count_cell(line.clients)]
            cells += [span_cell(budgets[line.device], digits), *counts]
            rows.append([*settings_cells(part, keys), *cells])
    heads = [*map(heading, keys), "device", "clients", "budget MB"]
    return table_of([*heads, *OUTCOMES], rows)


def _times(classes: Classes, keys: Sequence[str]) -> HtmlTable:
    """Return when models were ready, and what they cost."""
    rows = []
    for part, _, found in classes:
        for line in found:
            ready = (line.ready_median_s, line.ready_p90_s, line.ready_max_s)
            cells = [Cell(line.device), *(Cell(time_words(s), s) for s in ready)]
            cells += [count_cell(line.stragglers), count_cell(line.retries)]
            cells += [_size_cell(line.down_bytes), _size_cell(line.up_bytes)]
            cells += [count_cell(line.joules)]
            rows.append([*settings_cells(part, keys), *cells])
    heads = [*map(heading, keys), "device", "ready, median", "nine of ten", "last"]
    return table_of([*heads, "stragglers", "retries", "MB down", "MB up", "joules"], rows)


def _rates(parts: Sequence[Part], keys: Sequence[str]) -> HtmlTable:
    """Return the rate of the timed model and of full precision, for the clients of each class."""
    found = [(part, *pair) for part in parts for pair in _pairs(part)]
    kinds = dict.fromkeys(quantized.rate.kind for _, _, _, quantized in found)
    heads = [*map(heading, keys), "device", "clients"]
    rows = [
        [*settings_cells(part, keys), Cell(device), count_cell(_clients(quantized))]
        for part, device, _, quantized in found
    ]
    for kind in kinds:
        heads += [f"fp32, {kind} %", INTERVAL, f"timed, {kind} %", INTERVAL, "difference", INTERVAL]
        for row, (_, _, full, quantized) in zip(rows, found, strict=True):
            row += _compared(full, quantized) if quantized.rate.kind == kind else [Cell("-")] * 6
    return table_of(heads, rows)


def _pairs(part: Part) -> Iterator[tuple[str, Line | None, Line]]:
    """Yield each class with the lines of its clients: full precision, if there is, and the timed
    model."""
    assert part.timed is not None
    device = part.timed.devices
    lines = [line for line in lines_of(part) if line.source != OTHER]
    full = next((line for line in lines if line.allocation == FULL_PRECISION), None)
    quantized = next((line for line in lines if line.method == part.timed.model), None)
    if quantized is None:
        return
    for name in (*sorted(set(device.values())), FLEET):
        clients = {c for c, of in device.items() if name in (of, FLEET)}
        timed = _of_clients(quantized, clients)
        if timed is not None:
            yield name, full and _of_clients(full, clients), timed


def _of_clients(line: Line, clients: set[str]) -> Line | None:
    rows = tuple(row for row in line.rows if row.client in clients)
    if len(rows) == len(line.rows):
        return line  # whose rate may be known
    return Line(line.part, line.method, line.source, rows) if rows else None


def _compared(full: Line | None, quantized: Line) -> list[Cell]:
    cells = [c for line in (full, quantized) for c in _rate_cells(line)]
    if full is None or full.rate.value is None or quantized.rate.value is None:
        return [*cells, Cell("-"), Cell("-")]
    result = difference(quantized, full)
    if result is None or result.low != result.low:  # NaN: one clip has no interval
        change = (quantized.rate.value - full.rate.value) / 100
        return [*cells, Cell(points(change), change), Cell("-")]
    interval = Cell(f"[{points(result.low)}, {points(result.high)}]", result.low)
    return [*cells, Cell(points(result.difference), result.difference), interval]


def _rate_cells(line: Line | None) -> list[Cell]:
    if line is None:
        return [Cell("-"), Cell("-")]
    return [number_cell(line.rate.value), Cell(line.rate.interval().strip() or "-", line.rate.low)]


def _sensing(timed: Sequence[tuple[Part, TimedRound]], keys: Sequence[str]) -> HtmlTable:
    """Return how many clients of each class held the full-precision model in which way."""
    modes = [m for m in _SENSING if any(m in t.sensing.values() for _, t in timed)]
    rows = []
    for part, one in timed:
        for device, found in _by_class(one, one.sensing).items():
            counts = Counter(found)
            cells = [Cell(device), *(count_cell(counts[mode]) for mode in modes)]
            rows.append([*settings_cells(part, keys), *cells])
    return table_of([*map(heading, keys), "device", *(_SENSING[m] for m in modes)], rows)


def _by_class(timed: TimedRound, values: Mapping[str, T]) -> dict[str, list[T]]:
    """Return class of device -> the values of its clients; last, under `all`, those of everyone."""
    found: dict[str, list[T]] = {name: [] for name in sorted(set(timed.devices.values()))}
    for client, device in timed.devices.items():
        found[device].append(values[client])
    return found | {FLEET: [value for each in found.values() for value in each]}


def _servers(timed: Sequence[tuple[Part, TimedRound]], keys: Sequence[str]) -> HtmlTable:
    """Return what left the server, how many waited for it, and when the round was over."""
    rows = []
    for part, one in timed:
        server = one.server
        sent = (server.sent_bytes, server.full_bytes, server.shared_bytes)
        cells = [_size_cell(n) for n in sent]
        cells += [_size_cell(server.received_bytes), count_cell(server.peak_queue)]
        cells += [Cell(time_words(s), s) for s in (server.closed_s, server.end_s)]
        rows.append([*settings_cells(part, keys), *cells])
    heads = ["MB sent", "all fetched by all", "each blob once", "MB received", "longest queue"]
    heads += ["round closed", "last client ended"]
    return table_of([*map(heading, keys), *heads], rows)


def _size_cell(n_bytes: int) -> Cell:
    """Return bytes in MB; two digits of less than one, for messages are small."""
    megabytes = n_bytes / MB
    return Cell(f"{megabytes:,.1f}" if megabytes >= 1 else f"{megabytes:.2g}", megabytes)


def _policy(clock: ClockSettings) -> str:
    """Return in a sentence when the round closes."""
    deadline = time_words(clock.deadline_s)
    goal = f"{100 * (clock.goal or 1):g} % of the clients are ready"
    match clock.policy:
        case "drop":
            return f"The round closes after {deadline}: who is not ready by then is late."
        case "extend":
            return f"The round closes after {deadline}, or later, as soon as {goal}."
        case "over_select":
            by = f", and after {deadline} at the latest" if clock.deadline_s else ""
            return f"The round closes as soon as {goal}{by}."
    return "The round waits for all."


def _clients(line: Line) -> int:
    return len({row.client for row in line.rows})
