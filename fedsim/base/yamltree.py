"""YAML as a tree of nodes that know their place, so that every error can name its line.

Scalars are read as in YAML 1.2: `no` is text (Norwegian), not false, and 1e3 is a number. A tree is
small whatever its text says: aliases are copied where they stand, up to `MAX_NODES` values, and
nothing is nested deeper than `MAX_DEPTH`, so whoever walks through one needs no bound of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fedsim.base.yamlnodes import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    OVERRIDE,
    TAG,
    TOO_DEEP,
    TOO_MANY,
    Problem,
    check,
    place,
    problem,
    written_out,
)

__all__ = [
    "MAX_BYTES",
    "OVERRIDE",
    "Problem",
    "Spot",
    "compose",
    "dump",
    "find",
    "item_index",
    "place",
    "plain",
    "problem",
    "replace",
]
_MAX_INDEX_DIGITS = 9


@dataclass(frozen=True)
class Spot:
    """What a path of keys leads to: a node, and the node of its key (the root is its own)."""

    key: Node
    value: Node
    found: int
    """How many parts of the path exist; fewer than its length if the path leads nowhere."""


class _TooMuchError(Exception):
    """The sentence about a tree that is nested too deep or too large, and the line."""


class _Loader(yaml.SafeLoader):
    depth = nodes = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        # Here already: pyyaml takes seconds for what is far above the bounds.
        self.depth, self.nodes = self.depth + 1, self.nodes + 1
        wrong = TOO_DEEP if self.depth > MAX_DEPTH + 1 else ""
        wrong = TOO_MANY if self.nodes > MAX_NODES else wrong
        if wrong:
            raise _TooMuchError(wrong, self.peek_event().start_mark.line + 1)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_Loader.yaml_implicit_resolvers = {}  # none of YAML 1.1's


_SCALARS = [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
]


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind, _pattern, _first in _SCALARS:
    _compiled = re.compile(rf"^(?:{_pattern})$")
    _Loader.add_implicit_resolver(TAG + _kind, _compiled, _first)
    # The writer quotes text that either version of YAML would read as something else.
    _Dumper.add_implicit_resolver(TAG + _kind, _compiled, _first)


def _write_list(dumper: _Dumper, values: list[Any]) -> Node:
    inline = not any(isinstance(v, dict | list) for v in values)
    return dumper.represent_sequence(TAG + "seq", values, flow_style=inline)


def _write_text(dumper: _Dumper, text: str) -> Node:
    style = "|" if "\n" in text else None
    if re.search("[\x85\u2028\u2029\r]", text):
        style = '"'  # the only style in which pyyaml preserves these line breaks
    return dumper.represent_scalar(TAG + "str", text, style=style)


_Dumper.add_representer(list, _write_list)
_Dumper.add_representer(str, _write_text)


def dump(value: dict[str, Any]) -> str:
    """Return `value` as YAML, keys in the order given."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def compose(text: str, name: str) -> Node | None:
    """Return the tree of `text`, or None if it is empty.

    Args:
        text: the YAML.
        name: the file's path, or `--set ...` for an override; places begin with it.

    Raises:
        Problem: for a syntax error, a duplicate key, a tag or key that is not a plain value, a
            character that no setting needs, and a tree above `MAX_NODES` or `MAX_DEPTH`.
    """
    if len(text) > MAX_BYTES:
        sentence = f"{len(text):,} characters are more than {MAX_BYTES:,}: write a shorter file"
        raise _at(name, 1, sentence)
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{ord(text[error.position]):04X}"
        raise _at(name, line, f"the character {character} is not allowed in YAML") from None
    loader.name = name
    try:
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _syntax_problem(error, name, text) from None
    except _TooMuchError as error:
        sentence, line = error.args
        raise _at(name, line, sentence) from None
    except (ValueError, OverflowError):  # a code point or a version that no number holds
        raise _at(name, 1, "not YAML: a number in an escape or a directive is too large") from None
    finally:
        loader.dispose()
    if root is None:
        return None
    check(root)
    return written_out(root)


def plain(node: Node) -> Any:
    """Return the node as plain dicts, lists, strings, numbers, booleans and None."""
    if isinstance(node, MappingNode):
        return {key.value: plain(value) for key, value in node.value}
    if isinstance(node, SequenceNode):
        return [plain(value) for value in node.value]
    text, kind = node.value, node.tag.removeprefix(TAG)
    try:
        match kind:
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text)
            case "float":
                return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    except ValueError:
        pass  # `!!int abc`, or more digits than Python reads: the schema rejects it as text
    return text


def find(root: Node, path: Sequence[str | int]) -> Spot:
    """Return the node at `path`, or the last one on the way if the path leads nowhere."""
    spot = Spot(key=root, value=root, found=0)
    for part in path:
        below = _child(spot.value, part)
        if below is None:
            break
        spot = Spot(*below, found=spot.found + 1)
    return spot


def item_index(part: str, count: int) -> int | None:
    """Return the place in a list of `count` items that a part of a dotted key means, or None."""
    if not part.isascii() or not part.isdigit() or len(part) > _MAX_INDEX_DIGITS:
        return None
    return int(part) if int(part) < count else None


def replace(root: MappingNode, path: Sequence[str], value: Node) -> None:
    """Put `value` at `path` in the tree, creating missing mappings on the way.

    Raises:
        Problem: if the path leads through a value that has no such part, or is longer than
            `MAX_DEPTH`; its place is that of `value`.
    """
    if len(path) > MAX_DEPTH:
        raise problem(value, f"{len(path)} keys: {TOO_DEEP}")
    node: Node = root
    for i, part in enumerate(path):
        last = i + 1 == len(path)
        here = ".".join(path[:i])
        if isinstance(node, MappingNode):
            known = _child(node, part)
            if last or known is None or _is_null(known[1]):
                new: Node = value if last else _mapping(value)
                key = ScalarNode(TAG + "str", part, value.start_mark, value.end_mark)
                pairs = [(k, v) for k, v in node.value if k.value != part]
                at = next((j for j, (k, _) in enumerate(node.value) if k.value == part), len(pairs))
                node.value = [*pairs[:at], (key, new), *pairs[at:]]
                node = new
            else:
                node = known[1]
        elif isinstance(node, SequenceNode):
            count = len(node.value)
            item = item_index(part, count)
            if item is None:
                items = f"it has items 0 to {count - 1}" if count else "it is empty"
                raise problem(value, f"{here} has no item {part!r}: {items}")
            if last:
                node.value[item] = value
            node = node.value[item]
        else:
            raise problem(value, f"{here} is {node.value!r} and has no part {part!r}")


def _mapping(like: Node) -> MappingNode:
    return MappingNode(TAG + "map", [], like.start_mark, like.end_mark)


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.tag == TAG + "null"


def _child(node: Node, part: str | int) -> tuple[Node, Node] | None:
    if isinstance(node, MappingNode):
        return next(((k, v) for k, v in node.value if k.value == part), None)
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


def _syntax_problem(error: yaml.MarkedYAMLError, name: str, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    message = error.problem or error.context or "not YAML"
    lines = text.splitlines()
    written = lines[line - 1] if line <= len(lines) else ""
    if "\t" in message or re.match(r"\s*\t", written):
        message = "the line is indented with a tab: use spaces"
    elif "mapping values are not allowed" in message:
        message = "a second ':' on one line: put text that contains ': ' in quotes"
    elif error.context and error.context != message:
        parts = (error.context, message)
        first, second = parts if message.startswith("but") else reversed(parts)
        message = f"not YAML: {first} {second}"
    else:
        message = f"not YAML: {message}"
    return _at(name, line, message)


def _at(name: str, line: int, sentence: str) -> Problem:
    return Problem(name if name.startswith(OVERRIDE) else f"{name}:{line}", line, sentence)
