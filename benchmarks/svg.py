"""Three small figures as SVG text: dots, a table of bit depths, lines; for `benchmarks.pictures`.

Each has a ground of its own, and follows the reader's choice of light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

WIDTH, LEFT, RIGHT = 880, 70, 20
_STYLE = """<style>
.g{fill:#fff}.t{fill:#1f2328}.m{fill:#59636e}.r{stroke:#d1d9e0}.b{stroke:#59636e}
.c0{fill:#59636e;stroke:#59636e}.c1{fill:#0072b2;stroke:#0072b2}.c2{fill:#c04d00;stroke:#c04d00}
@media (prefers-color-scheme:dark){
.g{fill:#161b22}.t{fill:#e6edf3}.m{fill:#9da7b3}.r{stroke:#30363d}.b{stroke:#9da7b3}
.c0{fill:#9da7b3;stroke:#9da7b3}.c1{fill:#56b4e9;stroke:#56b4e9}.c2{fill:#ff9d5c;stroke:#ff9d5c}}
</style>"""
Parts = Sequence[tuple[str, int]]
"""Name of a part of the network, and its number of layers, in order."""


def dots(values: np.ndarray, parts: Parts) -> str:
    """Return a figure of positive values (speakers, layers): a column of dots for each layer."""
    top, bottom = 46, 270
    low, high = math.floor(np.log10(values.min())), math.ceil(np.log10(values.max()))
    rows = [_title("How strongly each layer responds: median magnitude of its output")]
    for power in range(low, high + 1):
        y = bottom - (bottom - top) * (power - low) / (high - low)
        rows += [_line(LEFT, y, WIDTH - RIGHT, y, "r"), _text(LEFT - 8, y + 4, f"{10.0**power:g}")]
    step = _step(parts)
    ys = bottom - (bottom - top) * (np.log10(values) - low) / (high - low)
    for layer, column in enumerate(ys.T):
        x = LEFT + step * (layer + 0.5)
        rows += [
            f'<circle class="c1" cx="{x:.1f}" cy="{y:.1f}" r="3" fill-opacity=".35"/>'
            for y in column
        ]
    rows += _axis(parts, top, bottom)
    about = f"each layer of bundled:ctc has {len(values)} dots, one per speaker"
    return _svg(bottom + 46, rows, about, bottom + 38)


def plans(
    found: Mapping[str, Sequence[Sequence[int]]], budgets: Sequence[float], parts: Parts
) -> str:
    """Return a table of bit depths: a row per plan and budget (MB), a column per layer."""
    step, height, y = _step(parts), 26, 62
    rows = [_title("Bits for each layer, within a budget")]
    for number, (name, plan) in enumerate(found.items()):
        rows.append(_text(LEFT, y, name, f"c{2 - number}", "start", "stroke-width='0'"))
        y += 8
        for budget, bits in zip(budgets, plan, strict=True):
            rows.append(_text(LEFT - 8, y + 17, f"{budget:g} MB"))
            rows.append('<g font-size="12" text-anchor="middle">')
            for layer, depth in enumerate(bits):
                x, (red, green, blue) = LEFT + step * layer, _shade(depth)
                ink = "#fff" if depth >= 7 else "#111"
                rows += [
                    f'<rect x="{x + 0.5:.1f}" y="{y + 0.5}" width="{step - 1:.1f}"'
                    f' height="{height - 3}" rx="2" fill="#{red:02x}{green:02x}{blue:02x}"/>',
                    f'<text x="{x + step / 2:.1f}" y="{y + 17}" fill="{ink}">{depth}</text>',
                ]
            rows.append("</g>")
            y += height
        y += 26
    bottom = y - 26
    rows += _axis(parts, bottom, bottom)
    about = "bundled:ctc, one speaker; a darker field has more bits, and every file fits its budget"
    return _svg(bottom + 46, rows, about, bottom + 38)


def lines(found: Mapping[str, Sequence[float]], depths: Sequence[int]) -> str:
    """Return a figure of percentages by bit depth, a line for each name, labelled at its right."""
    top, bottom, right = 46, 270, 560
    logs = {name: np.log10(percent) for name, percent in found.items()}
    low = math.floor(min(values.min() for values in logs.values()))
    high = math.ceil(max(values.max() for values in logs.values()))
    rows = [_title("What rounding does to the output of a layer: squared error, % of its square")]
    for power in range(low, high + 1):
        y = bottom - (bottom - top) * (power - low) / (high - low)
        rows += [_line(LEFT, y, right, y, "r"), _text(LEFT - 8, y + 4, f"{10.0**power:g} %")]
    xs = [LEFT + 20 + (right - LEFT - 40) * i / (len(depths) - 1) for i in range(len(depths))]
    for x, depth in zip(xs, depths, strict=True):
        rows.append(_text(x, bottom + 18, f"{depth} bits", "m", "middle"))
    for number, (name, values) in enumerate(logs.items()):
        ys = [bottom - (bottom - top) * (value - low) / (high - low) for value in values]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        look = f'class="c{number}" stroke-width="2"'
        rows.append(f'<polyline points="{points}" {look} style="fill:none"/>')
        rows += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" {look}/>'
            for x, y in zip(xs, ys, strict=True)
        ]
        rows.append(_text(right + 12, ys[-1] + 4, name, f"c{number}", "start", "stroke-width='0'"))
    about = "bundled:ctc, median of its linear layers, on clips that rounding did not see"
    return _svg(bottom + 46, rows, about, bottom + 38)


def _svg(height: float, rows: Sequence[str], about: str, y: float) -> str:
    body = "\n".join([*rows, _text(LEFT, y, about, "m", "start")])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img"'
        f' font-family="Helvetica, Arial, sans-serif" font-size="13">\n{_STYLE}\n'
        f'<rect class="g" width="{WIDTH}" height="{height:g}" rx="6"/>\n{body}\n</svg>\n'
    )


def _title(text: str) -> str:
    return (
        f'<text class="t" x="{LEFT}" y="26" font-size="15" font-weight="bold">{escape(text)}</text>'
    )


def _text(
    x: float, y: float, text: str, look: str = "m", anchor: str = "end", more: str = ""
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{look}" {place} {more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, look: str) -> str:
    return f'<line class="{look}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _step(parts: Parts) -> float:
    return (WIDTH - LEFT - RIGHT) / sum(n for _, n in parts)


def _axis(parts: Parts, top: float, bottom: float) -> list[str]:
    """Return the names of the parts below the layers, and a line between every two."""
    step, first, rows = _step(parts), 0, []
    for name, n in parts:
        middle = LEFT + step * (first + n / 2)
        rows.append(_text(middle, bottom + 18, name, "m", "middle"))
        first += n
        if first < sum(n for _, n in parts):
            x = LEFT + step * first
            rows.append(_line(x, top, x, bottom + 6, "b").replace("/>", ' stroke-opacity=".4"/>'))
    return rows


def _shade(depth: int) -> tuple[int, int, int]:
    """Return red, green and blue for a bit depth: light for 2, dark for 10 and more."""
    share = min(1.0, (depth - 2) / 8)
    light, dark = (205, 226, 243), (8, 48, 107)
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(light, dark, strict=True))
    return red, green, blue
