"""Figures of what lies below the results: bits and sensitivities of layers, activations, cost."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np

from fedsim.report.style import WIDTH, AnyChart, colour, dash, data, finished, names_of, shape
from fedsim.report.tables import Table

_HEIGHT = 300
_BINS = 32
_MANY_QUANTILES = 20


def bits_by_layer(table: Table, method: str) -> AnyChart:
    """Draw the bit depth of each layer of each client's model.

    Args:
        table: columns model, layer, name, bits; see `layertables.bits_table`.
        method: how the models were made.
    """
    depths = sorted({row["bits"] for row in table})
    chart = (
        alt.Chart(data(table))
        .mark_rect()
        .encode(
            x=_layer_axis(table, "layer:O"),
            y=alt.Y(
                "model:N",
                sort=None,
                title=None,
                axis=alt.Axis(labelLimit=260, ticks=False, domain=False, labelPadding=8),
            ),
            color=alt.Color(
                "bits:O",
                scale=alt.Scale(domain=depths, scheme="yellowgreenblue"),
                legend=alt.Legend(title="bits of a weight", columns=8),
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
    """Draw the sensitivity of each layer, a line for each client, on a logarithmic scale.

    Args:
        table: columns line, layer, name, value, low, high; see `layertables.sensitivity_table`.
        measure: the statistic that ranks the layers, such as `median`.
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
        "What each device says of the layers",
        "One number a layer is all that leaves a device to make its plan."
        + (" Band: from the least client to the greatest." if several else ""),
    )


def gain_by_seconds(table: Table) -> AnyChart:
    """Draw what a calibration gains against none, by the seconds it takes.

    Args:
        table: columns line, calibration, seconds, gain; see `tables.calibration_costs`.
    """
    names = names_of(table)
    seconds = alt.X("seconds:Q", scale=alt.Scale(type="log"), title="seconds a client calibrates")
    gain = alt.Y("gain:Q", title="gain against no calibration, points")
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
        "A colour for each way to give layers their bit depths.",
    )


def activations_by_group(table: Table, layers: Sequence[str] | None = None) -> AnyChart:
    """Draw how the activations of some layers are distributed, a curve for each group of users.

    Args:
        table: columns group, layer, q, value: the quantile `q`, from 0 to 1, of a layer's
            activations.
        layers: which, in this order; None for all.
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
    return finished(curves, "How the layers answer different users")


def _densities(table: Table) -> Table:
    """Return histograms: `density` holds from `value` to the next one. A layer's groups share bins.

    Between two quantiles activations are taken to lie evenly. Of many quantiles, the outermost are
    left out: what lies beyond the next ones would take all the room.
    """
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in sorted(table, key=lambda row: row["q"]):
        groups = curves.setdefault(row["layer"], {})
        groups.setdefault(row["group"], []).append((row["value"], row["q"]))
    made: Table = []
    for layer, groups in curves.items():
        least = 0 if min(map(len, groups.values())) < _MANY_QUANTILES else 1
        ends = [c[i][0] for c in groups.values() for i in (least, -1 - least)]
        edges = np.linspace(min(ends), max(ends), _BINS + 1)
        for group, curve in groups.items():
            values, shares = zip(*curve, strict=True)
            below = np.interp(edges, values, shares, left=0.0, right=1.0)
            density = [*(np.diff(below) / np.diff(edges)), 0.0]
            made += [
                {"line": group, "layer": layer, "value": round(float(v), 6), "density": round(d, 6)}
                for v, d in zip(edges, map(float, density), strict=True)
            ]
    return made


def _layer_axis(table: Table, field: str) -> alt.X:
    last = max((row["layer"] for row in table), default=1)
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if last <= 14 * s)
    marks = [1, *range(step, last + 1, step)] if step > 1 else list(range(1, last + 1))
    axis = alt.Axis(values=marks, labelAngle=0, format="d", grid=False, ticks=False)
    scale = alt.Scale(nice=False, padding=8) if field.endswith("Q") else alt.Undefined
    return alt.X(field, title="layer, from input to output", axis=axis, scale=scale)
