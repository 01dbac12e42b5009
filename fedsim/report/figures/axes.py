"""Axes and tooltips that several figures share."""

from __future__ import annotations

from typing import Any

import altair as alt

from fedsim.report.tables import Table
from fedsim.results.lines import UNITS, Kind

_LOG_ABOVE = (
    150  # an error rate above this, in percent, with others far below needs a logarithmic axis
)
_TIPS = {
    "line": ("line:N", "method"),
    "test": ("test:N", "tested on"),
    "tuned": ("tuned:N", "tuned on"),
    "mb": ("mb:Q", "MB"),
    "bits": ("bits:Q", "mean bits"),
    "x": ("x:Q", "value"),
    "rate": ("rate:Q", "%"),
    "low": ("low:Q", "from %"),
    "high": ("high:Q", "to %"),
    "clients": ("clients:Q", "clients"),
    "leak": ("leak:Q", "inferred"),
    "chance": ("chance:Q", "chance"),
    "change": ("change:Q", "change from own, points"),
    "mark": ("mark:N", "of the clients"),
}


def rate_title(kind: Kind) -> str:
    """Return the title of an axis of rates."""
    if kind == "accuracy":
        return "accuracy, % of clips"
    return f"{UNITS[kind]} error rate ({kind}), %"


def what(kind: Kind) -> str:
    """Return what is measured, as the first words of a title."""
    return "Accuracy" if kind == "accuracy" else f"{UNITS[kind].capitalize()} errors"


def rate_look(table: Table, kind: Kind) -> dict[str, Any]:
    """Return the title, scale and axis of rates.

    An error rate may exceed 100 % many times; the scale is then logarithmic.
    """
    rates = [row["rate"] for row in table]
    low = min((rate for rate in rates if rate > 0), default=0.0)
    if not max(rates) > _LOG_ABOVE or not max(rates) > 5 * low > 0:
        return {
            "title": rate_title(kind),
            "scale": alt.Scale(zero=False, nice=True),
            "axis": alt.Axis(tickCount=6),
        }
    high = max(row.get("high") or row["rate"] for row in table)
    marks = [m * 10**k for k in range(-1, 5) for m in (1, 2, 5)]
    return {
        "title": f"{rate_title(kind)} (logarithmic)",
        "scale": alt.Scale(type="log", domain=[low / 2, high], nice=False, clamp=True),
        "axis": alt.Axis(values=[m for m in marks if low / 2 <= m <= high], format="~g"),
    }


def name_axis(limit: int = 440, padding: int = 8) -> alt.Axis:
    """Return an axis of names that are cut off after `limit` pixels."""
    return alt.Axis(labelLimit=limit, ticks=False, domain=False, labelPadding=padding)


def tips_of(*columns: str) -> list[alt.Tooltip]:
    """Return the tooltip of a mark with these columns."""
    return [
        alt.Tooltip(field, title=title, format=".4~g" if field.endswith("Q") else "")
        for field, title in (_TIPS[column] for column in columns)
    ]
