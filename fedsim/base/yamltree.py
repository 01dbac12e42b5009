"""YAML as a tree of nodes that know their place, so that every error can name its line.

Scalars are read as in YAML 1.2: `no` is text (Norwegian), not false, and 1e3 is a number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

_TAG = "tag:yaml.org,2002:"
OVERRIDE = "--set "
"""The name of an override begins with this, where it stands in place of a file's."""


class Problem(Exception):
    """One mistake: its place (`file:line` or the override), its line, and a sentence about it."""

    def __init__(self, place: str, line: int, sentence: str) -> None:
        super().__init__(f"{place}: {sentence}")
        self.line = line


@dataclass(frozen=True)
class Spot:
    """What a path of keys leads to: a node, and the node of its key (the root is its own)."""

    key: Node
    value: Node
    found: int
    """How many parts of the path exist; fewer than its length if the path leads nowhere."""


class _Loader(yaml.SafeLoader):
    pass


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
    _Loader.add_implicit_resolver(_TAG + _kind, _compiled, _first)
    # The writer quotes text that either version of YAML would read as something else.
    _Dumper.add_implicit_resolver(_TAG + _kind, _compiled, _first)


def _write_list(dumper: _Dumper, values: list[Any]) -> Node:
    inline = not any(isinstance(v, dict | list) for v in values)
    return dumper.represent_sequence(_TAG + "seq", values, flow_style=inline)


def _write_text(dumper: _Dumper, text: str) -> Node:
    style = "|" if "\n" in text else None
    if re.search("[\x85\u2028\u2029\r]", text):
        style = '"'  # the only style in which pyyaml preserves these line breaks
    return dumper.represent_scalar(_TAG + "str", text, style=style)


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
        Problem: for a syntax error, a duplicate key, and a tag or key that is not a plain value.
    """
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
    except RecursionError:
        raise _at(name, 1, "lists or mappings are nested too deep") from None
    finally:
        loader.dispose()
    if root is not None:
        _check(root, ())
    return root


def place(node: Node) -> tuple[str, int]:
    """Return where a node is: the text with which a message about it begins, and its line."""
    name, line = node.start_mark.name, node.start_mark.line + 1
    return (name, 0) if name.startswith(OVERRIDE) else (f"{name}:{line}", line)


def problem(node: Node, sentence: str) -> Problem:
    """Return a problem at a node."""
    return Problem(*place(node), sentence)


def plain(node: Node) -> Any:
    """Return the node as plain dicts, lists, strings, numbers, booleans and None."""
    if isinstance(node, MappingNode):
        return {key.value: plain(value) for key, value in node.value}
    if isinstance(node, SequenceNode):
        return [plain(value) for value in node.value]
    text, kind = node.value, node.tag.removeprefix(_TAG)
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


def replace(root: MappingNode, path: Sequence[str], value: Node) -> None:
    """Put `value` at `path` in the tree, creating missing mappings on the way.

    Raises:
        Problem: if the path leads through a value that has no such part; its place is that of
            `value`.
    """
    node: Node = root
    for i, part in enumerate(path):
        last = i + 1 == len(path)
        here = ".".join(path[:i])
        if isinstance(node, MappingNode):
            known = _child(node, part)
            if last or known is None or _is_null(known[1]):
                new: Node = value if last else _mapping(value)
                key = ScalarNode(_TAG + "str", part, value.start_mark, value.end_mark)
                pairs = [(k, v) for k, v in node.value if k.value != part]
                at = next((j for j, (k, _) in enumerate(node.value) if k.value == part), len(pairs))
                node.value = [*pairs[:at], (key, new), *pairs[at:]]
                node = new
            else:
                node = known[1]
        elif isinstance(node, SequenceNode):
            count = len(node.value)
            if not part.isascii() or not part.isdigit() or int(part) >= count:
                raise problem(value, f"{here} has no item {part!r}: it has items 0 to {count - 1}")
            if last:
                node.value[int(part)] = value
            node = node.value[int(part)]
        else:
            raise problem(value, f"{here} is {node.value!r} and has no part {part!r}")


def _mapping(like: Node) -> MappingNode:
    return MappingNode(_TAG + "map", [], like.start_mark, like.end_mark)


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.tag == _TAG + "null"


def _child(node: Node, part: str | int) -> tuple[Node, Node] | None:
    if isinstance(node, MappingNode):
        return next(((k, v) for k, v in node.value if k.value == part), None)
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


def _check(node: Node, above: tuple[int, ...]) -> None:
    if id(node) in above:
        raise problem(node, "an alias (*) may not stand inside what it names")
    above = (*above, id(node))
    if isinstance(node, ScalarNode):
        if node.tag.removeprefix(_TAG) not in ("null", "bool", "int", "float", "str"):
            raise problem(node, f"the tag {node.tag!r} is not allowed: write a plain value")
    elif isinstance(node, SequenceNode):
        for item in node.value:
            _check(item, above)
    else:
        first: dict[str, Node] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise problem(key, "a key must be one word, not a list or a mapping")
            if key.value in first:
                line = place(first[key.value])[1]
                where = f", first on line {line}" if line else ""
                raise problem(key, f"the key {key.value!r} is written twice{where}: remove one")
            first[key.value] = key
            _check(value, above)


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
