"""Figures of what explains the results: bits and sensitivities of layers, activations, cost."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np

from fedsim.report.figures.axes import name_axis
from fedsim.report.style import WIDTH, AnyChart, colour, dash, data, finished, names_of, shape
from fedsim.report.tables import Table

_HEIGHT = 300
_BINS = 32
_MANY_QUANTILES = 20


def bits_by_layer(table: Table, method: str) -> AnyChart:
    """Draw the bit depth of each layer of each client's model.

    Args:
        table: columns model, layer, name, bits; see `layertables.bits_table`.
        method: the method of the models.
    """
    depths = sorted({row["bits"] for row in table})
    chart = (
        alt.Chart(data(table))
        .mark_rect()
        .encode(
            x=_layer_axis(table, "layer:O"),
            y=alt.Y("model:N", sort=None, title=None, axis=name_axis()),
            color=alt.Color(
                "bits:O",
                scale=alt.Scale(domain=depths, scheme="yellowgreenblue"),
                legend=alt.Legend(title="bits per weight", columns=8),
            ),
            tooltip=[
                alt.Tooltip("model:N", title="client"),
                alt.Tooltip("name:N", title="layer"),
                alt.Tooltip("bits:Q", title="bits"),
            ],
        )
        .properties(width=WIDTH, height=22 * len(names_of(table, "model")))
    )
    return finished(chart, f"Bits of each layer ({method})", "Layers in the order of the model.")


def sensitivity_by_layer(table: Table, measure: str) -> AnyChart:
    """Draw the sensitivity of each layer on a logarithmic scale, one line per client.

    Args:
        table: columns line, layer, name, value, low, high; see `layertables.sensitivity_table`.
        measure: the sensitivity measure, such as `median`.
    """
    table = [row for row in table if row["value"] > 0]  # a logarithm has no zero
    names = names_of(table)
    base = alt.Chart(data(table)).encode(x=_layer_axis(table, "layer:Q"))
    scale, axis = alt.Scale(type="log", nice=False, padding=6), alt.Axis(tickCount=5)
    title = f"sensitivity ({measure})"
    layers = []
    if any(row["low"] is not None for row in table):
        band = base.transform_filter("isValid(datum.low) && datum.low > 0").mark_area(opacity=0.18)
        low = alt.Y("low:Q", scale=scale, axis=axis, title=title)
        layers.append(band.encode(y=low, y2="high:Q", color=colour(names)))
    value = alt.Y("value:Q", scale=scale, axis=axis, title=title)
    lines = base.encode(y=value, color=colour(names))
    layers.append(lines.mark_line(strokeWidth=1.2, opacity=0.8).encode(strokeDash=dash(names)))
    tips = [
        alt.Tooltip("line:N", title="client"),
        alt.Tooltip("name:N", title="layer"),
        alt.Tooltip("value:Q", title="sensitivity", format=".3~g"),
    ]
    points = lines.mark_point(filled=True, size=22, opacity=0.9)
    layers.append(points.encode(shape=shape(names), tooltip=tips))
    several = any(row["low"] is not None for row in table)
    return finished(
        alt.layer(*layers).properties(width=WIDTH, height=_HEIGHT),
        "What each device releases about the layers",
        "These numbers are all that the server needs from a device to plan its model."
        + (" Band: minimum to maximum." if several else ""),
    )


def gain_by_seconds(table: Table) -> AnyChart:
    """Draw the gain of each calibration over none against the seconds that it takes.

    Args:
        table: columns line, calibration, seconds, gain; see `tables.calibration_costs`.
    """
    names = names_of(table)
    seconds = alt.X(
        "seconds:Q", scale=alt.Scale(type="log"), title="seconds of calibration per client"
    )
    gain = alt.Y("gain:Q", title="gain over no calibration, points")
    base = alt.Chart(data(table)).encode(x=seconds, y=gain)
    tips = [
        alt.Tooltip("calibration:N"),
        alt.Tooltip("seconds:Q", format=".3~g"),
        alt.Tooltip("gain:Q", title="gain, points", format=".3~g"),
    ]
    return finished(
        alt.layer(
            base.mark_point(filled=True, size=90, opacity=1).encode(
                color=colour(names), shape=shape(names), tooltip=tips
            ),
            base.mark_text(align="left", dx=9, fontSize=12).encode(
                text="calibration:N", color=colour(names)
            ),
        ).properties(width=WIDTH, height=_HEIGHT),
        "What calibration gains, and what it costs",
        "Colours: the ways in which layers get their bit depths.",
    )


def activations_by_group(table: Table, layers: Sequence[str] | None = None) -> AnyChart:
    """Draw the distribution of the activations of some layers, one curve per group of users.

    Args:
        table: columns group, layer, q, value: the quantile `q`, from 0 to 1, of a layer's
            activations.
        layers: the layers to draw, in this order; None for all.
    """
    chosen = list(layers) if layers is not None else names_of(table, "layer")
    steps = _densities([row for row in table if row["layer"] in chosen])
    groups = names_of(steps)
    curves = (
        alt.Chart(data(steps))
        .mark_line(interpolate="step-after", strokeWidth=1.8)
        .encode(
            x=alt.X("value:Q", title="activation"),
            y=alt.Y("density:Q", title="density"),
            color=colour(groups, points=False),
            strokeDash=dash(groups),
        )
        .properties(width=180, height=120)
        .facet(alt.Facet("layer:N", title=None, sort=chosen), columns=3, align="all")
        .resolve_scale(x="independent", y="independent")
    )
    return finished(curves, "How layers respond to different users")


def _densities(table: Table) -> Table:
    """Return histograms: `density` is that from `value` to the next value; groups share bins.

    Activations are assumed to be uniform between two quantiles. If there are many quantiles, the
    outermost are left out: the long tails would take up most of the figure.
    """
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in sorted(table, key=lambda row: row["q"]):
        groups = curves.setdefault(row["layer"], {})
        groups.setdefault(row["group"], []).append((row["value"], row["q"]))
    bins: Table = []
    for layer, groups in curves.items():
        skipped = 0 if min(map(len, groups.values())) < _MANY_QUANTILES else 1
        ends = [c[i][0] for c in groups.values() for i in (skipped, -1 - skipped)]
        edges = np.linspace(min(ends), max(ends), _BINS + 1)
        for group, curve in groups.items():
            values, shares = zip(*curve, strict=True)
            below = np.interp(edges, values, shares, left=0.0, right=1.0)
            density = [*(np.diff(below) / np.diff(edges)), 0.0]
            bins += [
                {"line": group, "layer": layer, "value": round(float(v), 6), "density": round(d, 6)}
                for v, d in zip(edges, map(float, density), strict=True)
            ]
    return bins


def _layer_axis(table: Table, field: str) -> alt.X:
    last = max((row["layer"] for row in table), default=1)
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if last <= 14 * s)
    marks = [1, *range(step, last + 1, step)] if step > 1 else list(range(1, last + 1))
    axis = alt.Axis(values=marks, labelAngle=0, format="d", grid=False, ticks=False)
    scale = alt.Scale(nice=False, padding=8) if field.endswith("Q") else alt.Undefined
    return alt.X(field, title="layer, from input to output", axis=axis, scale=scale)
