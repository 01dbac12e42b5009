"""Sentences about what pydantic refused: the line, the key, the value, and what is allowed.

No word of pydantic's own reaches a user: its errors are read by their types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from yaml.nodes import Node, ScalarNode

from fedsim.base.units import count_words
from fedsim.base.yamltree import Problem, find, plain, problem
from fedsim.errors import nearest, quoted, shortened
from fedsim.scenario.fields import Place, keys_of, place_at

_ALLOWED = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping, one 'key: value' per line",
    "model_type": "must be a mapping, one 'key: value' per line",
    "model_attributes_type": "must be a mapping, one 'key: value' per line",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must be written otherwise",
    "union_tag_not_found": "must be written otherwise",
    "json_invalid": "must be JSON",
}
_LIMITS = {
    "greater_than": ("gt", "must be more than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}
_MAX_NUMBER = 40
"""Digits of a number in a sentence."""
_MAX_KEY = 200
"""Characters of a dotted key in a sentence."""
_MAX_EXPLAINED = 200
"""Mistakes that are put into sentences; of more, somebody repeated one."""
_ANYTHING_ELSE = "not allowed here"


def explain(error: ValidationError, model: type[BaseModel], root: Node) -> list[Problem]:
    """Return one problem for each mistake in `error`, placed in the tree of the YAML file.

    Args:
        error: what `model` refused.
        model: the settings that were to be made.
        root: the tree that was read.
    """
    problems = {}
    for details in _mistakes(error):
        path = _path(details)
        spot = find(root, path)
        key = _dotted(path[: max(spot.found, 1)])
        sentence = _sentence(details, model, key, _show_node(spot.value), plain(spot.value))
        at_key = _is_about_keys(details) or not isinstance(spot.value, ScalarNode)
        found = problem(spot.key if at_key else spot.value, sentence)
        problems[str(found)] = found
    return list(problems.values())


def sentences(
    error: ValidationError,
    model: type[BaseModel],
    name: Callable[[Sequence[str | int]], str] | None = None,
) -> list[str]:
    """Return one sentence for each mistake in `error`, where there is no file.

    Args:
        error: what `model` refused.
        model: the settings that were to be made.
        name: path of keys -> what the user calls the setting; the dotted path if left out.
    """
    found = []
    for details in _mistakes(error):
        key, value = (name or _dotted)(_path(details)), details["input"]
        found.append(_sentence(details, model, key, _show(value), value))
    return list(dict.fromkeys(found))


def _mistakes(error: ValidationError) -> Iterator[Any]:
    found = error.errors(include_url=False)
    bad = [details["loc"] for details in found]
    for details in found[:_MAX_EXPLAINED]:
        # pydantic counts only the good items, and so calls a list of bad ones too short as well
        if details["type"] != "too_short" or not any(_below(loc, details["loc"]) for loc in bad):
            yield details


def _below(path: tuple[str | int, ...], above: tuple[str | int, ...]) -> bool:
    return len(path) > len(above) and path[: len(above)] == above


def _path(details: Any) -> list[str | int]:
    """Return the keys that lead to a mistake; to a list that is too short, not what it lacks."""
    keys = [*keys_of(details["loc"]), *details.get("ctx", {}).get("at", ())]
    return keys[:-1] if _lacks_item(details) else keys


def _lacks_item(details: Any) -> bool:
    return details["type"] == "missing" and isinstance(details["loc"][-1], int)


def _is_wrong_key(details: Any) -> bool:
    return details["type"] == "extra_forbidden" or details["loc"][-1:] == ("[key]",)


def _is_about_keys(details: Any) -> bool:
    return _is_wrong_key(details) or details["type"] == "missing"


def _dotted(path: Sequence[str | int]) -> str:
    return shortened(".".join(map(str, path)), _MAX_KEY)


def _sentence(details: Any, model: type[BaseModel], key: str, shown: str, value: Any) -> str:
    """Return what is wrong, and what is allowed.

    Args:
        details: one of pydantic's `errors()`.
        model: the settings that were to be made.
        key: what the user calls the setting.
        shown: the value as the user wrote it.
        value: the value.
    """
    kind, location, context = details["type"], details["loc"], details.get("ctx", {})
    if kind == "scenario":
        return f"{key}: {context['text']}" if key else str(context["text"])
    place = place_at(model, location)
    if _is_about_keys(details) and not _lacks_item(details):
        *above, last = keys_of(location)
        where = f" in {_dotted(above)}" if above else ""
        if not _is_wrong_key(details):
            return f"the key {quoted(str(last))}{where} is missing: add it{_about(place)}"
        hint = nearest(str(last), place_at(model, _above(location)).keys())
        return f"unknown key {quoted(str(last))}{where}: {hint}"
    return f"{key or 'the scenario'} is {shown}: {_allowed(details, place, model, value)}"


def _above(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    return location[:-2] if location[-1] == "[key]" else location[:-1]


def _allowed(details: Any, place: Place, model: type[BaseModel], value: Any) -> str:
    kind, context, about = details["type"], details.get("ctx", {}), _about(place)
    if kind == "literal_error":
        words = place.words()
        hint = nearest(str(value), words)
        guess = "" if hint.startswith("known") else f"; {hint}"
        return f"must be {' or '.join(words)}{guess}"
    if kind in _LIMITS:
        limit, words_of = _LIMITS[kind]
        number = context[limit]
        number = number if isinstance(number, int) else f"{number:.15g}"
        return f"{words_of} {number}{about}"
    if _lacks_item(details) or kind in ("too_short", "too_long"):
        return f"{_length(details, model)}{about}"
    if kind == "string_too_long":
        return f"must have at most {count_words(context['max_length'], 'character')}{about}"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f"must be text, so put it in quotes{about}"
    return f"{_ALLOWED.get(kind, _ANYTHING_ELSE)}{about}"


def _length(details: Any, model: type[BaseModel]) -> str:
    location, context = details["loc"], details.get("ctx", {})
    listed = place_at(model, location[:-1] if _lacks_item(details) else location)
    if (exact := listed.length()) is not None:
        return f"must have {count_words(exact, 'item')}"
    if details["type"] == "too_long":
        return f"must have at most {count_words(context['max_length'], 'item')}"
    least = context["min_length"]
    return "must not be empty" if least == 1 else f"must have at least {count_words(least, 'item')}"


def _about(place: Place) -> str:
    return f" ({place.description})" if place.description else ""


def _show_node(node: Node) -> str:
    value = plain(node)
    if isinstance(node, ScalarNode) and value is not None and not isinstance(value, str):
        return shortened(str(node.value), _MAX_NUMBER)  # a number as it was written
    return _show(value)


def _show(value: Any) -> str:
    if value is None:
        return "empty (null)"
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    return str(value).lower() if isinstance(value, bool) else quoted(value)
