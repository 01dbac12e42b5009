"""The style of figures, and how they are saved: as HTML, SVG and PNG from one definition."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import altair as alt

from fedsim.errors import FedsimError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#BF8400", "#3C97CE")
"""The palette of Okabe and Ito for colour-blind readers, without yellow; orange and sky blue are
darker, so that each colour has a contrast of 3:1 with the light page and with the dark one."""
GREY = "#767676"
"""The colour of references; visible on white and on black."""
WIDTH = 640
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
_DASHES = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [4, 4])
_FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif"
_CONFIG: dict[str, Any] = {
    "font": _FONT,
    "background": "white",
    "view": {"stroke": None},
    "axis": {
        **{"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"},
        **{"labelColor": "#444", "titleColor": "#444", "titlePadding": 8, "labelPadding": 5},
        **{"gridColor": "#e6e6e6", "domainColor": "#bbb", "tickColor": "#bbb"},
    },
    "axisX": {"labelFlush": False},
    "header": {"labelFontSize": 12, "titleFontSize": 12, "labelColor": "#444"},
    "legend": {
        **{"orient": "bottom", "labelFontSize": 12, "labelLimit": 400},
        **{"titleFontSize": 12, "titleFontWeight": "normal", "labelColor": "#444"},
        **{"titleColor": "#444", "symbolSize": 70, "rowPadding": 4, "columnPadding": 18},
        **{"symbolOpacity": 1, "titleLimit": 420},
    },
    "title": {
        **{"anchor": "start", "fontSize": 15, "fontWeight": 600, "offset": 14},
        **{"subtitleFontSize": 12, "subtitleColor": "#555", "subtitlePadding": 5},
    },
}

AnyChart: TypeAlias = alt.Chart | alt.LayerChart | alt.FacetChart


def data(table: Sequence[dict[str, Any]]) -> alt.InlineData:
    """Return a table as the data of a chart."""
    return alt.InlineData(values=list(table))


def finished(chart: AnyChart, title: str, subtitle: str = "") -> AnyChart:
    """Return a chart with its title, a line below it, and the style of all figures."""
    params = alt.TitleParams(title, subtitle=subtitle) if subtitle else alt.TitleParams(title)
    return chart.properties(title=params).configure(**_CONFIG)


def colour(names: Sequence[str], points: bool = True) -> alt.Color:
    """Return a colour for each line, by its position in `names`.

    Args:
        names: the names of the lines.
        points: whether lines have points, which the legend then shows.
    """
    cycle = [COLOURS[i % len(COLOURS)] for i in range(len(names))]
    scale = alt.Scale(domain=list(names), range=cycle)
    columns = max(1, WIDTH // (7 * max(map(len, names), default=0) + 45))
    legend = alt.Legend(symbolStrokeWidth=0 if points else 2, columns=columns)
    return alt.Color("line:N", scale=scale, title=None, legend=legend)


def dash(names: Sequence[str]) -> alt.StrokeDash:
    """Return a dash pattern for each line."""
    cycle = [_DASHES[i % len(_DASHES)] for i in range(len(names))]
    scale = alt.Scale(domain=list(names), range=cycle)
    return alt.StrokeDash("line:N", scale=scale, title=None)


def shape(names: Sequence[str]) -> alt.Shape:
    """Return a mark for each line, so that lines differ without colours too."""
    cycle = [_SHAPES[i % len(_SHAPES)] for i in range(len(names))]
    return alt.Shape("line:N", scale=alt.Scale(domain=list(names), range=cycle), title=None)


def names_of(table: Sequence[dict[str, Any]], column: str = "line") -> list[str]:
    """Return the distinct values of a column in their order."""
    return list(dict.fromkeys(row[column] for row in table))


def save(chart: alt.TopLevelMixin, path: Path) -> list[Path]:
    """Write a chart to `path` with .html, .svg and .png added; return the three paths.

    The HTML contains everything that it needs and opens without a network.

    Raises:
        FedsimError: if a file cannot be written.
    """
    files = [path.with_name(path.name + suffix) for suffix in (".html", ".svg", ".png")]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        chart.save(files[0], inline=True)
        chart.save(files[1])
        chart.save(files[2], scale_factor=2)
    except OSError as error:
        raise FedsimError(
            f"{path}: the figure cannot be written here ({error.strerror}): name another folder"
            f" with --figures"
        ) from error
    return files
