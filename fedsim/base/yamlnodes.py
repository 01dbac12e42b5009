"""Nodes of YAML: where each stands, how many there may be, and a tree without aliases.

A few hundred bytes can stand for billions of values, because an alias (`*name`) is what it names
again. Each node is therefore checked once, and counted as often as it would be written out.
"""

from __future__ import annotations

import re
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_BYTES = 2**19
"""Largest YAML file that is read."""
MAX_NODES = 50_000
"""Keys and values that a tree may have, with everything that aliases stand for written out."""
MAX_DEPTH = 50
"""Lists and mappings that may stand in each other."""
TAG = "tag:yaml.org,2002:"
OVERRIDE = "--set "
"""The name of an override begins with this, where it stands in place of a file's."""


TOO_DEEP = f"lists or mappings are nested more than {MAX_DEPTH} deep: write them flatter"
TOO_MANY = f"more than {MAX_NODES:,} keys and values, with aliases (*) written out: write fewer"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ud800-\udfff]")


class Problem(Exception):
    """One mistake: its place (`file:line` or the override), its line, and a sentence about it."""

    def __init__(self, place: str, line: int, sentence: str) -> None:
        super().__init__(f"{place}: {sentence}")
        self.line = line


def place(node: Node) -> tuple[str, int]:
    """Return where a node is: the text with which a message about it begins, and its line."""
    name, line = node.start_mark.name, node.start_mark.line + 1
    return (name, 0) if name.startswith(OVERRIDE) else (f"{name}:{line}", line)


def problem(node: Node, sentence: str) -> Problem:
    """Return a problem at a node."""
    return Problem(*place(node), sentence)


def check(root: Node) -> None:
    """Check a tree as a file has it, with aliases.

    Raises:
        Problem: for an alias to what it stands in, more than `MAX_NODES` or `MAX_DEPTH` once
            aliases are written out, a duplicate key, a tag or key that is not a plain value, and a
            character that no setting needs.
    """
    _check(root, {}, {})


def _check(node: Node, sizes: dict[int, tuple[int, int]], open_: dict[int, None]) -> None:
    """Check a node and all below it, each once, however often aliases name it.

    Args:
        node: what is checked.
        sizes: id of a checked node -> the nodes and the depth that it has, written out.
        open_: ids of the nodes that the node stands in.
    """
    if id(node) in open_:
        raise problem(node, "an alias (*) may not stand inside what it names")
    if id(node) in sizes:
        return
    if isinstance(node, ScalarNode):
        _check_scalar(node)
        sizes[id(node)] = 1, 0
        return
    if len(open_) >= MAX_DEPTH:
        raise problem(node, TOO_DEEP)
    open_[id(node)] = None
    values, keys = node.value, 0
    if isinstance(node, MappingNode):
        _check_keys(node)
        values, keys = [value for _, value in node.value], 1
    nodes, depth = 1, 0
    for below in values:
        _check(below, sizes, open_)
        size, deep = sizes[id(below)]
        nodes, depth = nodes + keys + size, max(depth, deep)
        if nodes > MAX_NODES:
            raise problem(below, TOO_MANY)
        if depth >= MAX_DEPTH:
            raise problem(below, TOO_DEEP)
    del open_[id(node)]
    sizes[id(node)] = nodes, depth + 1


def _check_scalar(node: ScalarNode) -> None:
    if node.tag.removeprefix(TAG) not in ("null", "bool", "int", "float", "str"):
        raise problem(node, f"the tag {node.tag!r} is not allowed: write a plain value")
    found = _CONTROL.search(node.value)
    if found:
        character = f"U+{ord(found[0]):04X}"
        raise problem(node, f"the character {character} is not allowed in a setting: remove it")


def _check_keys(node: MappingNode) -> None:
    first: dict[str, Node] = {}
    for key, _ in node.value:
        if not isinstance(key, ScalarNode):
            raise problem(key, "a key must be one word, not a list or a mapping")
        _check_scalar(key)
        if key.value in first:
            line = place(first[key.value])[1]
            where = f", first on line {line}" if line else ""
            raise problem(key, f"the key {key.value!r} is written twice{where}: remove one")
        first[key.value] = key


def written_out(node: Node) -> Node:
    """Return a copy in which no node stands twice: a change at one place is none at another."""
    if isinstance(node, MappingNode):
        value: Any = [(key, written_out(below)) for key, below in node.value]
    elif isinstance(node, SequenceNode):
        value = [written_out(below) for below in node.value]
    else:
        return node  # nobody changes a scalar
    return type(node)(node.tag, value, node.start_mark, node.end_mark)
