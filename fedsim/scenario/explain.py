"""Sentences about what pydantic refused: the line, the key, the value, and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fedsim.base.yamltree import Problem, Spot, find, plain, problem
from fedsim.errors import nearest
from fedsim.scenario.schema import Scenario

_ALLOWED = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping, one 'key: value' a line",
    "model_type": "must be a mapping, one 'key: value' a line",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "not allowed",
    "too_short": "must not be empty",
}
_LIMITS = {
    "greater_than": ("gt", "must be more than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}


def location(details: Any) -> list[str | int]:
    """Return the keys that lead to a mistake, without pydantic's names of the shapes of a value."""
    keys = [part for part in details["loc"] if not str(part).startswith("<")]
    return [*keys, *details.get("ctx", {}).get("at", ())]


def explain(error: ValidationError, root: Node) -> list[Problem]:
    """Return one problem for each mistake in `error`, placed in the tree of the YAML file."""
    found = error.errors(include_url=False)
    bad = [details["loc"] for details in found]
    return [
        _explain_one(details, root)
        for details in found
        # pydantic counts only the good items, and so calls a list of bad ones too short as well
        if not (details["type"] == "too_short" and any(_below(loc, details["loc"]) for loc in bad))
    ]


def _below(path: tuple[str | int, ...], above: tuple[str | int, ...]) -> bool:
    return len(path) > len(above) and path[: len(above)] == above


def _explain_one(details: Any, root: Node) -> Problem:
    path = location(details)
    kind, context = details["type"], details.get("ctx", {})
    spot = find(root, path)
    key = ".".join(str(part) for part in path[: max(spot.found, 1)])
    if kind == "extra_forbidden":
        known = _fields_at(path[:-1])
        where = ".".join(str(part) for part in path[:-1])
        hint = nearest(str(path[-1]), known)
        return problem(spot.key, f"unknown key {str(path[-1])!r}{_in(where)}: {hint}")
    if kind == "missing":
        where = ".".join(str(part) for part in path[:-1])
        return problem(spot.key, f"the key {str(path[-1])!r}{_in(where)} is missing{_about(path)}")
    node = spot.value if isinstance(spot.value, ScalarNode) else spot.key
    if kind == "scenario":
        return problem(node, f"{key}: {context['text']}" if key else context["text"])
    value = _show(spot)
    if kind == "literal_error":
        return problem(
            node, f"{key} is {value}: must be {' or '.join(_literals(path))}{_guess(spot, path)}"
        )
    if kind in _LIMITS:
        limit, words = _LIMITS[kind]
        return problem(node, f"{key} is {value}: {words} {context[limit]:g}{_about(path)}")
    allowed = _ALLOWED.get(kind, details["msg"])
    if kind == "string_type" and isinstance(plain(spot.value), bool | int | float):
        allowed = "must be text, so put it in quotes"
    return problem(node, f"{key} is {value}: {allowed}{_about(path)}")


def _in(where: str) -> str:
    return f" in {where}" if where else ""


def _show(spot: Spot) -> str:
    if isinstance(spot.value, MappingNode):
        return "a mapping" if spot.value.value else "an empty mapping"
    if isinstance(spot.value, SequenceNode):
        return "a list" if spot.value.value else "an empty list"
    value = plain(spot.value)
    if value is None:
        return "empty (null)"
    return repr(value) if isinstance(value, str) else spot.value.value


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the settings class inside a type such as `tuple[Annotated[Settings, ...], ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for part in get_args(annotation) if (m := _model_in(part))), None)


def _model_at(path: Sequence[str | int]) -> type[BaseModel]:
    model: type[BaseModel] = Scenario
    for part in path:
        field = model.model_fields.get(str(part))
        model = (_model_in(field.annotation) if field else None) or model
    return model


def _fields_at(path: Sequence[str | int]) -> list[str]:
    return list(_model_at(path).model_fields)


def _last_field(path: Sequence[str | int]) -> Any:
    """Return the field that the last name in `path` stands for, or None."""
    names = [i for i, part in enumerate(path) if isinstance(part, str)]
    for i in reversed(names):
        field = _model_at(path[:i]).model_fields.get(str(path[i]))
        if field:
            return field
    return None


def _about(path: Sequence[str | int]) -> str:
    field = _last_field(path)
    return f" ({field.description})" if field and field.description else ""


def _literals(path: Sequence[str | int]) -> list[str]:
    field = _last_field(path)
    return _choices(field.annotation) if field else []


def _choices(annotation: Any) -> list[str]:
    """Return the words of the first Literal inside a type."""
    if get_origin(annotation) is Literal:
        return [str(name) for name in get_args(annotation)]
    return next((found for part in get_args(annotation) if (found := _choices(part))), [])


def _guess(spot: Spot, path: Sequence[str | int]) -> str:
    hint = nearest(str(plain(spot.value)), _literals(path))
    return "" if hint.startswith("known") else f"; {hint}"
