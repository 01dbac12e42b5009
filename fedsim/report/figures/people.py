"""Figures of rates: by method, by client, and by the client on whose clips a model was tuned."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from fedsim.report.figures.axes import name_axis, rate_look, tips_of, what
from fedsim.report.style import COLOURS, GREY, WIDTH, AnyChart, data, finished, names_of
from fedsim.report.tables import NO_CALIBRATION, Table
from fedsim.results.lines import Kind

_MARKS = {
    "median": (GREY, "M-0.3,-1.4L0.3,-1.4L0.3,1.4L-0.3,1.4Z"),
    "mean": (COLOURS[2], "diamond"),
    "worst tenth": (COLOURS[1], "triangle-right"),
}
"""Colour and shape of each mark of a distribution."""
_SIGNED = "datum.value == 0 ? '0' : format(datum.value, '+~g')"


def error_by_method(table: Table, kind: Kind) -> AnyChart:
    """Draw the rate of each line as a point with its interval.

    Args:
        table: columns line, named, rate, low, high; those that are not named are grey; see
            `tables.method_rows`.
        kind: what the rate is.
    """
    chart, known = _points(table, rate_look(table, kind))
    return finished(
        chart,
        f"{what(kind)} of each method",
        " ".join(
            [
                *(["Lines: 95 % interval."] if known else []),
                *(["Blue: what the claim is about."] if not all(r["named"] for r in table) else []),
            ]
        ),
    )


def rare_words(table: Table, phrase: str) -> AnyChart:
    """Draw the share of rare words that were wrong, for each line as a point with its interval.

    Args:
        table: columns line, named, rate, low, high; see `tables.rare_rows`.
        phrase: which words are rare.
    """
    look = {
        "title": "rare words that were wrong, %",
        "scale": alt.Scale(zero=False, nice=True),
        "axis": alt.Axis(tickCount=6),
    }
    chart, known = _points(table, look)
    rare = f"Rare: {phrase}."
    interval = " Lines: 95 % interval, with other clients." if known else ""
    return finished(chart, "Errors on rare words", rare + interval)


def _points(table: Table, look: dict[str, Any]) -> tuple[AnyChart, bool]:
    """Return a point with its interval for each line, and whether any has an interval."""
    y = alt.Y("line:N", sort=None, title=None, axis=name_axis())
    base = alt.Chart(data(table)).encode(y=y)
    points = base.mark_point(filled=True, size=80, opacity=1).encode(
        x=alt.X("rate:Q", **look),
        color=alt.condition("datum.named", alt.value(COLOURS[0]), alt.value(GREY)),
        tooltip=tips_of("line", "rate", "low", "high"),
    )
    known = [row for row in table if row["low"] is not None]
    bounds = alt.Chart(data(known)).encode(y=y).mark_rule(strokeWidth=2, color=GREY)
    low = alt.X("low:Q", **look)
    chart = alt.layer(*([bounds.encode(x=low, x2="high:Q")] if known else []), points)
    return chart.properties(width=WIDTH, height=26 * len(names_of(table))), bool(known)


def error_by_client(table: Table, kind: Kind) -> AnyChart:
    """Draw the distribution over clients: one circle per rate, with the number of clients as area,
    and marks of the median, the mean and the worst tenth.

    Args:
        table: columns line, rate, clients, q25, median, q75, mean, worst tenth; see
            `tables.client_rates`.
        kind: what the rate is.
    """
    peak = max((row["clients"] for row in table), default=1)
    largest = min(600, 60 * peak)  # square pixels
    padding = 8 + math.ceil(math.sqrt(largest / math.pi))  # a circle at 0 must not cover the names
    y = alt.Y("line:N", sort=None, title=None, axis=name_axis(padding=padding))
    base = alt.Chart(data(table)).encode(y=y)
    once = {row["line"]: row for row in table}
    marks = [
        {"line": line, "mark": mark, "rate": row[mark]}
        for line, row in once.items()
        for mark in _MARKS
    ]
    looks = {
        channel: scale(
            "mark:N",
            sort=list(_MARKS),
            scale=alt.Scale(domain=list(_MARKS), range=[look[i] for look in _MARKS.values()]),
            legend=alt.Legend(title=None, symbolStrokeWidth=0),
        )
        for i, (channel, scale) in enumerate((("color", alt.Color), ("shape", alt.Shape)))
    }
    area = alt.Scale(domain=[0, peak], range=[0, largest])
    chart = alt.layer(
        alt.Chart(data([*once.values()]))
        .mark_bar(color=GREY, opacity=0.25, height=16)
        .encode(y=y, x=alt.X("q25:Q", **rate_look(table, kind)), x2="q75:Q"),
        base.mark_circle(color=COLOURS[0], opacity=0.45, stroke=COLOURS[0]).encode(
            x="rate:Q",
            size=alt.Size("clients:Q", scale=area, legend=None),
            tooltip=tips_of("line", "rate", "clients"),
        ),
        alt.Chart(data(marks))
        .mark_point(filled=True, size=110, opacity=1)
        .encode(y=y, x="rate:Q", **looks, tooltip=tips_of("line", "mark", "rate")),
    ).properties(width=WIDTH, height=34 * len(once))
    return finished(
        chart,
        "How clients differ",
        "Circles: clients with the same rate, with their number as area. Bars: the middle half of"
        " the clients. Worst tenth: the mean of the tenth of the clients that is served worst.",
    )


def transfer(table: Table, kind: Kind, method: str) -> AnyChart:
    """Draw the matrix of who tested a model and on whose clips it was tuned.

    Args:
        table: columns test, tuned, rate, low, high, change; see `tables.transfer_matrix`.
        kind: what the rate is.
        method: the method of the models.
    """
    people = sorted({row["test"] for row in table})
    columns = sorted({row["tuned"] for row in table} - {NO_CALIBRATION})
    columns += [NO_CALIBRATION] * any(row["tuned"] == NO_CALIBRATION for row in table)
    limit = max((abs(r["change"] or 0) for r in table if r["tuned"] != NO_CALIBRATION), default=0)
    limit = limit or 1.0
    worse_first = kind == "accuracy"  # orange is worse than the client's own model
    scale = alt.Scale(
        domain=[-limit, 0, limit],
        range=["#E08214", "#F7F7F7", "#5AA3D0"]
        if worse_first
        else ["#5AA3D0", "#F7F7F7", "#E08214"],
        clamp=True,
    )
    base = alt.Chart(data(table)).encode(
        x=alt.X(
            "tuned:N",
            sort=columns,
            title="tuned on the clips of",
            scale=alt.Scale(paddingInner=0.04, paddingOuter=0.02),
            axis=alt.Axis(orient="top", labelAngle=-40, labelLimit=110, ticks=False, domain=False),
        ),
        y=alt.Y(
            "test:N",
            sort=people,
            title="tested on",
            scale=alt.Scale(paddingInner=0.06, paddingOuter=0.03),
            axis=name_axis(130),
        ),
    )
    title = f"{'Accuracy' if kind == 'accuracy' else kind} minus that of the own model, points"
    cells = base.mark_rect().encode(
        color=alt.Color("change:Q", scale=scale, legend=alt.Legend(title=title, labelExpr=_SIGNED)),
        tooltip=tips_of("test", "tuned", "rate", "low", "high", "change"),
    )
    own = base.transform_filter("datum.test === datum.tuned").mark_rect(
        fill=None, stroke="#666", strokeWidth=2
    )
    numbers = base.mark_text(fontSize=12, color="#111").encode(
        text=alt.Text("rate:Q", format=".1f")
    )
    width = max(WIDTH, 52 * len(columns))
    return finished(
        alt.layer(cells, own, numbers).properties(width=width, height=34 * len(people)),
        f"Whose clips a model is tuned on, and who uses it ({method})",
        f"Numbers: {kind} in %. Framed: tuned on own clips."
        " Orange is worse than these, blue is better.",
    )
