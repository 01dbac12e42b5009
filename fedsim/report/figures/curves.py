"""Rates against a number: the size of the model, or a setting."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np

from fedsim.report.figures.axes import rate_look, tips_of, what
from fedsim.report.style import GREY, WIDTH, AnyChart, colour, dash, data, finished, names_of, shape
from fedsim.report.tables import Table
from fedsim.results.lines import Kind

_HEIGHT = 340
_SIZE = "model size, MB (1 MB = 2^20 bytes)"
_MAX_BANDS = 3  # more would hide each other; intervals are then vertical lines, side by side
_APART = 4  # pixels between these lines


def error_by_size(table: Table, kind: Kind, mixed: bool = False) -> AnyChart:
    """Draw the rate against the size of the model, with mean bits on a second axis above.

    Args:
        table: columns line, full, mb, bits, rate, low, high, budget; see `tables.size_points`.
        kind: what the rate is.
        mixed: whether each size has other clients, so that lines only guide the eye.
    """
    lines = [row for row in table if not row["full"]]
    sizes = {b: [r["mb"] for r in lines if r["budget"] == b] for b in {r["budget"] for r in lines}}
    full = [
        {**row, "mb": round(float(np.mean(sizes[row["budget"]])), 4)}  # at the compressed models
        for row in table
        if row["full"] and row["budget"] in sizes
    ]
    x = alt.X("mb:Q", title=_SIZE, axis=alt.Axis(tickCount=8), scale=_inside())
    curves = _curves(lines, full, x, rate_look(table, kind), mixed)
    chart = alt.layer(alt.layer(*curves), _bits_axis(lines)).resolve_axis(x="independent")
    return finished(
        chart.properties(width=WIDTH, height=_HEIGHT),
        f"{what(kind)} against model size",
        _reading(lines, full, mixed),
    )


def error_by_setting(table: Table, kind: Kind, title: str) -> AnyChart:
    """Draw the rate against a number, such as the number of tuning clips.

    Args:
        table: columns line, full, x, rate, low, high; see `tables.setting_points`.
        kind: what the rate is.
        title: the title of the horizontal axis.
    """
    lines, full = ([row for row in table if row["full"] is f] for f in (False, True))
    values = sorted({row["x"] for row in table})
    axis = alt.Axis(values=values, format="~g", grid=False)
    curves = _curves(
        lines,
        full,
        alt.X("x:Q", title=title, axis=axis, scale=_inside()),
        rate_look(table, kind),
    )
    return finished(
        alt.layer(*curves).properties(width=WIDTH, height=_HEIGHT),
        f"{what(kind)} against {title}",
        _reading(lines, full),
    )


def _curves(
    lines: Table, full: Table, x: alt.X, look: dict[str, Any], mixed: bool = False
) -> list[alt.Chart]:
    """Return full precision, then lines with points, and their intervals if known."""
    y, low = alt.Y("rate:Q", **look), alt.Y("low:Q", **look)
    names = names_of(lines)
    tips = tips_of("line", *[k for k in ("mb", "bits", "x", "clients") if k in lines[0]], "rate")
    tips += tips_of("low", "high")
    layers = _full_precision(full, x, y)
    few = len(names) <= _MAX_BANDS and not mixed
    stroke: dict[str, Any] = {"strokeWidth": 1, "opacity": 0.5} if mixed else {"strokeWidth": 2}
    for i, name in enumerate(names):
        table = [row for row in lines if row["line"] == name]
        known = [row for row in table if row["low"] is not None]
        shift = 0.0 if few else _APART * (i - (len(names) - 1) / 2)
        if known:
            band = alt.Chart(data(known)).encode(x=x, y=low, y2="high:Q", color=colour(names))
            layers.append(
                band.mark_area(opacity=0.12) if few else band.mark_rule(opacity=0.55, xOffset=shift)
            )
        line = alt.Chart(data(table)).encode(x=x, y=y, color=colour(names))
        layers += [
            line.mark_line(xOffset=shift, **stroke).encode(strokeDash=dash(names)),
            line.mark_point(filled=True, size=70, opacity=1, xOffset=shift).encode(
                shape=shape(names), tooltip=tips
            ),
        ]
    return layers


def _full_precision(full: Table, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """Return the line of full precision; it is flat if all points are of the same clients."""
    tips = tips_of("line", "rate", "low", "high")
    look: dict[str, Any] = {"color": GREY, "strokeWidth": 2, "strokeDash": [6, 4]}
    if len({row["rate"] for row in full}) == 1:
        return [alt.Chart(data(full[:1])).mark_rule(**look).encode(y=y, tooltip=tips)]
    line = alt.Chart(data(full)).mark_line(**look)
    return [line.encode(x=x, y=y, detail="line:N", tooltip=tips)] if full else []


def _reading(lines: Table, full: Table, mixed: bool = False) -> str:
    """Return how to read the curves."""
    side_by_side = len(names_of(lines)) > _MAX_BANDS or mixed
    notes = []
    if any(row["low"] is not None for row in lines):
        notes.append("Vertical lines" if side_by_side else "Bands")
        notes[-1] += ": 95 % interval."
    if side_by_side:
        notes.append("Points of one size are drawn side by side.")
    if mixed:
        notes.append("Each size is another group of clients, so lines only guide the eye.")
    if full:
        notes.append("Dashed grey: full precision.")
    return " ".join(notes)


def _inside() -> alt.Scale:
    """Return a scale that keeps its marks off the edges."""
    return alt.Scale(zero=False, nice=False, padding=14)


def _bits_axis(lines: Table) -> alt.Chart:
    """Return an invisible layer whose axis, at the top, shows the mean bits for a size.

    Sizes are a linear function of mean bits: every model file also holds more than weights.
    """
    mb, bits = [row["mb"] for row in lines], [row["bits"] for row in lines]
    slope, start = np.polyfit(bits, mb, 1) if len(set(bits)) > 1 else (0.0, 0.0)
    whole = range(int(np.ceil(min(bits))), int(np.floor(max(bits))) + 1) if slope > 0 else []
    axis = alt.Axis(
        orient="top",
        title="mean bits per weight",
        values=[round(float(start + slope * b), 4) for b in whole],
        labelExpr=f"round((datum.value - {start:.6f}) / {slope or 1:.6f})",
        grid=False,
    )
    x = alt.X("mb:Q", axis=axis if slope > 0 else None)
    return alt.Chart(data(lines)).mark_point(opacity=0).encode(x=x)
