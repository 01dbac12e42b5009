"""Figures of a fleet: its budgets, when models are ready by the virtual clock, and where the time
goes."""

from __future__ import annotations

import altair as alt

from fedsim.report.figures.axes import name_axis
from fedsim.report.style import COLOURS, WIDTH, AnyChart, colour, dash, data, finished, names_of
from fedsim.report.tables import Table

_HEIGHT = 280
_UNITS = ((1.0, "s", "seconds"), (60.0, "min", "minutes"), (3600.0, "h", "hours"))
_TIMES = [0.001, 0.01, 0.1, *(n * s for s in (1.0, 60.0, 3600.0) for n in (1, 3, 10, 30)), 360000.0]
_TIME_LABEL = (
    "datum.value >= 3600 ? format(datum.value / 3600, ',~g') + ' h'"
    " : datum.value >= 60 ? format(datum.value / 60, '~g') + ' min'"
    " : format(datum.value, '~g') + ' s'"
)


def budgets(table: Table) -> AnyChart:
    """Draw the number of clients per range of budgets, stacked by class of device.

    Args:
        table: columns line (the class), low, high, clients; see `devicetables.budget_bins`.
    """
    names = names_of(table)
    colours = {"color": colour(names, points=False)} if len(names) > 1 else {}
    chart = (
        alt.Chart(data(table))
        .mark_bar(color=COLOURS[0], binSpacing=1)
        .encode(
            x=alt.X("low:Q", bin="binned", title="budget, MB", axis=alt.Axis(tickCount=8)),
            x2="high:Q",
            y=alt.Y("clients:Q", stack="zero", title="clients", axis=alt.Axis(tickMinStep=1)),
            **colours,
            tooltip=[
                alt.Tooltip("line:N", title="device"),
                alt.Tooltip("low:Q", title="from MB", format=".4~g"),
                alt.Tooltip("high:Q", title="to MB", format=".4~g"),
                alt.Tooltip("clients:Q", title="clients"),
            ],
        )
    )
    return finished(chart.properties(width=WIDTH, height=180), "How large models may be")


def ready_by_class(table: Table) -> AnyChart:
    """Draw the share of clients whose personalized model is ready by a time, one line per class.

    Args:
        table: columns line, seconds, share in percent; see `clocktables.ready_shares`.
    """
    names = names_of(table)
    first, last = (f(row["seconds"] for row in table) for f in (min, max))
    x = alt.X(
        "seconds:Q",
        scale=alt.Scale(type="log", domain=[first / 1.3, last * 1.3], nice=False),
        axis=alt.Axis(values=_TIMES, labelExpr=_TIME_LABEL),
        title="time to the personalized model (logarithmic)",
    )
    y = alt.Y("share:Q", title="clients of the class, %", scale=alt.Scale(domain=[0, 100]))
    base = alt.Chart(data(table)).encode(
        x=x,
        y=y,
        color=colour(names, points=False),
        strokeDash=dash(names),
        tooltip=[
            alt.Tooltip("line:N", title="device"),
            alt.Tooltip("seconds:Q", title="seconds", format=".3~g"),
            alt.Tooltip("share:Q", title="clients, %", format=".3~g"),
        ],
    )
    chart = base.mark_line(interpolate="step-after", strokeWidth=2)
    return finished(
        chart.properties(width=WIDTH, height=_HEIGHT),
        "When personalized models are ready",
        "Where a line ends below 100 %, the other clients got no model before the round closed.",
    )


def work_by_class(table: Table) -> AnyChart:
    """Draw the mean time per client of each kind of work as stacked bars, one per class.

    Args:
        table: columns device, line (the kind), seconds, order; see `clocktables.mean_spells`.
    """
    return _stacked(table, "Where the time goes: work", "Means over the clients of a class.")


def waiting_by_class(table: Table) -> AnyChart:
    """Draw the mean time per client of each kind of waiting, likewise."""
    return _stacked(
        table,
        "Where the time goes: waiting",
        "Means over the clients of a class, on another scale than work.",
    )


def _stacked(table: Table, title: str, subtitle: str) -> AnyChart:
    totals: dict[str, float] = {}
    for row in table:
        totals[row["device"]] = totals.get(row["device"], 0.0) + row["seconds"]
    unit, short, long = next(
        (u for u in reversed(_UNITS) if max(totals.values()) >= 2 * u[0]), _UNITS[0]
    )
    scaled = [{**row, "time": float(f"{row['seconds'] / unit:.5g}")} for row in table]
    names = names_of(scaled)
    chart = (
        alt.Chart(data(scaled))
        .mark_bar(height=18)
        .encode(
            y=alt.Y("device:N", sort=None, title=None, axis=name_axis()),
            x=alt.X("time:Q", stack="zero", title=f"{long} per client", axis=alt.Axis(tickCount=8)),
            color=colour(names, points=False),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("device:N"),
                alt.Tooltip("line:N", title="time for"),
                alt.Tooltip("time:Q", title=short, format=".3~g"),
            ],
        )
        .properties(width=WIDTH, height=30 * len(totals))
    )
    return finished(chart, title, subtitle)
