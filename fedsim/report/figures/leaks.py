"""The figure of what releases give away against what they cost."""

from __future__ import annotations

import altair as alt

from fedsim.report.figures.axes import rate_look, rate_title, tips_of, what
from fedsim.report.style import GREY, AnyChart, colour, data, finished, names_of, shape
from fedsim.report.tables import Table
from fedsim.results.lines import Kind

_WIDTH, _HEIGHT = 280, 240
_COLUMNS = 2


def leak_by_error(table: Table, kind: Kind) -> AnyChart:
    """Draw, for each attack, what each release gives away against the rate of its models.

    Args:
        table: columns panel, line, rate, low, high, leak, leak_low, leak_high, chance, full; see
            `leaks.leak_points`.
        kind: what the rate is.
    """
    names, title, inferred = names_of(table), rate_title(kind), "how well it is inferred"
    inside = alt.Scale(zero=False, padding=8)
    x = alt.X("rate:Q", **{**rate_look(table, kind), "scale": inside})
    y = alt.Y("leak:Q", title=inferred, scale=inside)
    base = alt.Chart()
    thin = base.encode(x=x, y=y, color=colour(names))
    dashed = {"color": GREY, "strokeDash": [6, 4], "strokeWidth": 1.5}
    layers = [
        base.mark_rule(**dashed).encode(
            y=alt.Y("chance:Q", aggregate="mean", title=inferred, scale=inside)
        ),
        base.transform_filter("isValid(datum.full)")
        .mark_rule(**{**dashed, "strokeDash": [2, 3]})
        .encode(x=alt.X("full:Q", aggregate="mean", title=title, scale=inside)),
        thin.transform_filter("isValid(datum.leak_low)")
        .mark_rule(opacity=0.6)
        .encode(y=alt.Y("leak_low:Q", title=inferred), y2="leak_high:Q"),
        thin.transform_filter("isValid(datum.low)")
        .mark_rule(opacity=0.6)
        .encode(x=alt.X("low:Q", title=title), x2="high:Q"),
        thin.mark_point(filled=True, size=80, opacity=1).encode(
            shape=shape(names), tooltip=tips_of("line", "rate", "leak", "chance")
        ),
    ]
    layered = alt.layer(*layers, data=data(table)).properties(width=_WIDTH, height=_HEIGHT)
    panels = alt.Facet("panel:N", title=None, sort=names_of(table, "panel"))
    chart = layered.facet(panels, columns=_COLUMNS).resolve_scale(y="independent")
    return finished(
        chart,
        f"{what(kind)} against what releases give away",
        "Lines: 95 % intervals. Dashed: chance. Dotted: full precision.",
    )
