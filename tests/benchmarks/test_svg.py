"""The figures of `benchmarks.svg`: well-formed, and each mark where its number puts it."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import svg

NAMESPACE = "{http://www.w3.org/2000/svg}"
PARTS = [("front", 1), ("rest & head", 2)]


def marks(text: str, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(text).iter(NAMESPACE + tag))


def test_dots_are_placed_by_the_logarithm():
    circles = marks(svg.dots(np.array([[0.1, 1.0, 10.0], [1.0, 10.0, 1.0]]), PARTS), "circle")
    ys = [float(mark.get("cy")) for mark in circles]
    low, middle, high = ys[0], ys[1], ys[3]
    assert ys == [low, middle, middle, high, high, middle]
    assert low - middle == pytest.approx(middle - high)
    assert len({mark.get("cx") for mark in circles}) == 3


def test_a_plan_has_a_field_for_each_layer_and_a_darker_one_for_more_bits():
    text = svg.plans({"one": [[2, 4, 12]], "two": [[3, 3, 3]]}, [0.9], PARTS)
    group, _ = marks(text, "g")
    assert [mark.text for mark in group.iter(NAMESPACE + "text")] == ["2", "4", "12"]
    fills = [int(mark.get("fill")[1:], 16) for mark in group.iter(NAMESPACE + "rect")]
    assert fills == sorted(fills, reverse=True)
    assert {"0.9 MB", "one", "two", "rest & head"} <= {mark.text for mark in marks(text, "text")}


def test_lines_fall_as_their_percentages_do():
    text = svg.lines({"a": [10.0, 1.0], "b": [1.0, 0.1]}, [2, 3])
    first, second = (mark.get("points").split() for mark in marks(text, "polyline"))
    ys = [[float(point.partition(",")[2]) for point in line] for line in (first, second)]
    assert ys[0][0] < ys[0][1] == ys[1][0] < ys[1][1]
