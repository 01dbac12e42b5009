"""Contrasts of the report's colours, by the formulas of WCAG 2.1: level AA, light and dark."""

import re
from pathlib import Path

import pytest

import fedsim.report
from fedsim.report.style import COLOURS, GREY

CSS = (Path(fedsim.report.__file__).parent / "report.css").read_text()
ROOTS = [
    dict(re.findall(r"(--[\w-]+): (#[0-9a-f]+);", block))
    for block in re.findall(r":root \{(.*?)\}", CSS, flags=re.S)
]
SCHEMES = {"light": ROOTS[0], "dark": ROOTS[1]}


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_formula():
    """The ends of the scale, and the lightest grey that passes on white: #767676, 4.54."""
    assert contrast("#fff", "#000000") == pytest.approx(21)
    assert contrast("#767676", "#fff") == pytest.approx(4.54, abs=0.005)


def test_both_schemes_have_the_same_colours():
    assert len(ROOTS) == 2
    assert ROOTS[0].keys() == ROOTS[1].keys()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_texts_have_a_contrast_of_four_and_a_half(scheme):
    """On the page and on a row or command in another shade; on a warning only its ink."""
    colours = SCHEMES[scheme]
    for text in ("--ink", "--soft", "--accent"):
        for ground in ("--paper", "--panel"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["--ink"], colours["--warn-bg"]) >= 4.5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_marks_have_a_contrast_of_three(scheme):
    paper = SCHEMES[scheme]["--paper"]
    assert {c: contrast(c, paper) for c in (*COLOURS, GREY) if contrast(c, paper) < 3} == {}
    assert contrast(SCHEMES[scheme]["--warn"], SCHEMES[scheme]["--warn-bg"]) >= 3


def test_every_colour_of_the_page_has_a_name():
    """So that none stands beside these tests."""
    rest = re.sub(r":root \{.*?\}", "", CSS, flags=re.S)
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b|rgba?\(|hsla?\(", rest) == []
