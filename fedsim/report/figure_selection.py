"""Which figures a report shows: those for which its data have something to show."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedsim.report import clocktables, devicetables, figures, layertables, leaks, tables
from fedsim.report.style import AnyChart, names_of
from fedsim.results.labels import BUDGET, TUNING_CLIPS, heading
from fedsim.results.lines import Kind, kind_of
from fedsim.results.rare import rare_phrase
from fedsim.results.rates import PartLine, lines_of
from fedsim.results.runs import Part

_MANY_CLIENTS = 5  # from this number on, their distribution gets a figure of its own
_MAX_LINES = 60
_MAX_CURVES = 14
_MAX_IN_MATRIX = 30
_MAX_MATRICES = 4
_MAX_FLEETS = 4
_LEAK_WIDTH = 640
_CELL = 56  # pixels that a number in a matrix needs


@dataclass(frozen=True)
class Figure:
    """A chart with its file name, a note below its title, and its minimum width."""

    name: str
    chart: AnyChart
    note: str = ""
    min_width: int = 0
    """In pixels; on a narrower screen the figure scrolls."""
    rates_of: Kind | None = None
    """What its points are rates of, if it has one for every method."""
    of_clients: bool = False
    """Whether it shows how clients differ."""


def figures_of(parts: Sequence[Part], named: Collection[PartLine] = ()) -> list[Figure]:
    """Return the figures for all parts; WER, CER and accuracy are drawn in separate figures.

    Args:
        parts: the results.
        named: the lines that a claim names, and a figure therefore brings out; none for all.
    """
    drawn: list[Figure] = []
    of_kind: dict[Kind, list[Part]] = {}
    for part in parts:
        if part.rows:
            of_kind.setdefault(kind_of(part.rows), []).append(part)
    for kind, group in of_kind.items():
        suffix = f"_{kind.lower()}" if len(of_kind) > 1 else ""
        drawn += [
            replace(figure, name=figure.name + suffix)
            for figure in [
                *_leaks(group, kind),
                *_rates(group, kind, named),
                *_transfers(group, kind),
                *_costs(group),
            ]
        ]
    return [*drawn, *_layers([part for part in parts if part.rows])]


def fleet_figures(parts: Sequence[Part]) -> list[Figure]:
    """Return the figures of the fleet: budgets where clients have different ones, and times, each
    for the first few parts that have any."""
    drawn = list(_budgets(parts))
    timed = [(part, part.timed) for part in parts if part.timed is not None]
    for number, (part, round_) in enumerate(timed[:_MAX_FLEETS], start=1):
        note = f"Settings: {part.label}." if part.settings else ""
        suffix = f"_{number}" if len(timed) > 1 else ""
        ready = clocktables.ready_shares(round_.timelines)
        if ready:
            chart = figures.ready_by_class(ready)
            drawn.append(Figure(f"fleet_ready{suffix}", chart, note))
        for name, draw, spells in (
            ("fleet_work", figures.work_by_class, clocktables.WORK),
            ("fleet_waiting", figures.waiting_by_class, clocktables.WAITING),
        ):
            table = clocktables.mean_spells(round_.timelines, spells)
            if table:
                drawn.append(Figure(f"{name}{suffix}", draw(table), note))
    return drawn


def _budgets(parts: Sequence[Part]) -> Iterator[Figure]:
    """Yield a figure for each of the first few distributions of budgets that differ."""
    found: list[tuple[Part, tables.Table]] = []
    for part in parts:
        table = devicetables.budget_bins(part)
        if table and all(table != other for _, other in found):
            found.append((part, table))
    for number, (part, table) in enumerate(found[:_MAX_FLEETS], start=1):
        several = len(found) > 1
        note = f"Settings: {part.label}." if several and part.settings else ""
        suffix = f"_{number}" if several else ""
        yield Figure(f"fleet_budgets{suffix}", figures.budgets(table), note)


def _rates(parts: Sequence[Part], kind: Kind, named: Collection[PartLine]) -> Iterator[Figure]:
    sizes = tables.size_points(parts)
    if _varies(sizes, "budget"):
        mixed = any(len({row.budget_bytes for row in part.rows}) > 1 for part in parts)
        chart = figures.error_by_size(sizes, kind, mixed)
        yield Figure("error_by_size", chart, rates_of=kind)
    keys = list(dict.fromkeys(key for part in parts for key in part.settings))
    numbers = [key for key in keys if key != BUDGET and _is_number(parts, key)]
    for key in numbers:
        points = tables.setting_points(parts, key)
        if _varies(points, "x"):
            title = "number of unlabelled tuning clips" if key == TUNING_CLIPS else heading(key)
            chart = figures.error_by_setting(points, kind, title)
            name = f"error_by_{heading(key).replace(' ', '_')}"
            yield Figure(name, chart, rates_of=kind)
    methods = tables.method_rows(parts, named)
    if 1 < len(methods) <= _MAX_LINES and (len(parts) == 1 or {*keys} - {BUDGET, *numbers}):
        chart = figures.error_by_method(methods, kind)
        yield Figure("error_by_method", chart, "", _room(methods), kind)
    if any(len(part.clients) >= _MANY_CLIENTS for part in parts):
        table = tables.client_rates(parts)
        if table and len(names_of(table)) <= _MAX_LINES:
            chart = figures.error_by_client(table, kind)
            yield Figure("error_by_client", chart, "", _room(table), of_clients=True)
    rare = tables.rare_rows(parts)
    if rare and len(rare) <= _MAX_LINES:
        phrase = rare_phrase(row for part in parts for row in part.rows)
        chart = figures.rare_words(rare, phrase)
        yield Figure("rare_words", chart, "", _room(rare), of_clients=True)


def _varies(table: tables.Table, column: str) -> bool:
    """Return whether the compressed models make curves, and not too many."""
    rows = [row for row in table if not row["full"]]
    return len({row[column] for row in rows}) > 1 and len(names_of(rows)) <= _MAX_CURVES


def _is_number(parts: Sequence[Part], key: str) -> bool:
    values = [part.settings.get(key) for part in parts]
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _room(table: tables.Table) -> int:
    """Return the width in pixels for the names of lines and a plot beside them."""
    return 6 * max(len(row["line"]) for row in table) + 160


def _transfers(parts: Sequence[Part], kind: Kind) -> Iterator[Figure]:
    number = 0
    for part in parts:
        if len(part.clients) > _MAX_IN_MATRIX:
            continue
        for method in dict.fromkeys(line.method for line in lines_of(part)):
            table = tables.transfer_matrix(part, method)
            if table and number < _MAX_MATRICES:
                number += 1
                chart = figures.transfer(table, kind, method)
                columns = len({row["tuned"] for row in table})
                note = f"Settings: {part.label}." if part.settings else ""
                yield Figure(f"transfer_{number}", chart, note, 150 + _CELL * columns)


def _leaks(parts: Sequence[Part], kind: Kind) -> Iterator[Figure]:
    """Yield the figure of what releases give away, if they were audited."""
    table = leaks.leak_points(parts, kind)
    if table:
        yield Figure("leak_by_error", figures.leak_by_error(table, kind), "", _LEAK_WIDTH)


def _costs(parts: Sequence[Part]) -> Iterator[Figure]:
    """Yield the figure of what calibrations cost, if timing.json has their seconds per client."""
    seconds: Any = next((s for p in parts if (s := p.timing.get("calibration_seconds"))), {})
    table = tables.calibration_costs(parts, seconds)
    if table:
        yield Figure("gain_by_seconds", figures.gain_by_seconds(table))


def _layers(parts: Sequence[Part]) -> Iterator[Figure]:
    method, depths = layertables.bits_table(parts)
    if depths:
        models = sum(1 for row in depths if row["layer"] == 1)
        note = f"An even choice of {models} models." if models == layertables.MAX_MODELS else ""
        width = 6 * max(len(row["model"]) for row in depths) + 320
        yield Figure("bits_by_layer", figures.bits_by_layer(depths, method), note, width)
    sensitivity = layertables.sensitivity_table(parts)
    if sensitivity:
        measures = {part.scenario.quantization.sensitivity for part in parts if part.sensed}
        chart = figures.sensitivity_by_layer(sensitivity, ", ".join(sorted(measures)))
        yield Figure("sensitivity_by_layer", chart, "", 480)
    shown, quantiles = layertables.activation_quantiles(parts)
    if quantiles:
        note = "An even choice of layers from input to output; the outermost values are left out."
        yield Figure("activations", figures.activations_by_group(quantiles, shown), note)
