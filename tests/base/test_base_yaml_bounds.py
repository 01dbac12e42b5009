"""YAML that stands for far more than it says, and what no setting needs."""

from __future__ import annotations

import pytest
from yaml.nodes import MappingNode

from fedsim.base.yamlnodes import MAX_DEPTH, MAX_NODES
from fedsim.base.yamltree import Problem, compose, find, item_index, plain, replace


def refused(text: str) -> str:
    with pytest.raises(Problem) as caught:
        compose(text, "s.yaml")
    return str(caught.value)


def aliases(width: int, depth: int) -> str:
    lines = ["x0: &x0 [1]"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * width)}]" for i in range(1, depth)]
    return "\n".join(lines) + "\n"


def test_nested_aliases_are_counted_as_they_would_be_written_out():
    assert "more than 50,000 keys and values" in refused(aliases(9, 10))
    assert "nested more than 50 deep" in refused(aliases(1, 1500))
    few = plain(compose(aliases(2, 5), "s.yaml"))
    assert few["x4"] == [[[[[1]] * 2] * 2] * 2] * 2


def test_the_bounds_are_exact():
    deep = "a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert compose(deep, "s.yaml") is not None
    assert "nested more than" in refused("a: [" + deep[3:] + "]")
    assert "nested more than" in refused("[" * 5_000)
    items = MAX_NODES - 3  # besides the mapping, its key and the list
    assert compose(f"a: [{'1,' * items}]", "s.yaml") is not None
    assert "more than 50,000" in refused(f"a: [{'1,' * (items + 1)}]")


def test_an_override_changes_one_place_and_not_its_aliases():
    root = compose("a: &a {x: 1}\nb: *a", "s.yaml")
    assert isinstance(root, MappingNode)
    value = compose("2", "--set a.x=2")
    assert value is not None
    replace(root, ["a", "x"], value)
    assert plain(root) == {"a": {"x": 2}, "b": {"x": 1}}


def test_characters_that_no_setting_needs():
    for escape, name in ((r"\0", "U+0000"), (r"\e", "U+001B"), (r"\uD800", "U+D800")):
        for text in (f'a: "{escape}"', f'"{escape}": a'):
            assert f"the character {name} is not allowed" in refused(text)
    assert "too large" in refused(r'a: "\UFFFFFFFF"')
    assert plain(compose(r'a: "x\ty\nz"', "s.yaml")) == {"a": "x\ty\nz"}


def test_items_are_named_by_ascii_digits():
    assert [item_index(text, 3) for text in ("0", "2", "3", "-1", "²", "٢", "", "9" * 5_000)] == [
        *(0, 2),
        *[None] * 6,
    ]
    root = compose("a: [1, 2]", "s.yaml")
    assert isinstance(root, MappingNode)
    value = compose("3", "--set a.²=3")
    assert value is not None
    with pytest.raises(Problem, match=r"a has no item '²': it has items 0 to 1"):
        replace(root, ["a", "²"], value)
    with pytest.raises(Problem, match="nested more than"):
        replace(root, ["b"] * 60, value)
    assert find(root, ["a", 1]).found == 2
