"""Which field of the schema a mistake is about: from the place that pydantic gives, to the type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo


def keys_of(location: Sequence[str | int]) -> list[str | int]:
    """Return the keys and indexes of a mistake's place.

    Args:
        location: the `loc` of one of pydantic's errors: keys and indexes, `<shape>` where a value
            may have several shapes, and `[key]` at the end where the key itself is refused.
    """
    return [part for part in location if not str(part).startswith("<") and part != "[key]"]


@dataclass(frozen=True)
class Place:
    """What the schema has at a location, as far as it could be followed."""

    annotation: Any
    """Type of the value there, without the field's own metadata."""
    field: FieldInfo | None
    """The last field on the way."""

    @property
    def description(self) -> str:
        """What the field means, or nothing."""
        return (self.field.description or "") if self.field else ""

    def keys(self) -> list[str]:
        """Return the keys that a mapping may have here, where they are fixed."""
        for _, kind in _alternatives(self.annotation):
            if _is_model(kind):
                return list(kind.model_fields)
            if get_origin(kind) is dict:
                return Place(get_args(kind)[0], None).words()
        return []

    def words(self) -> list[str]:
        """Return the words that a text may be here, where they are fixed."""
        for _, kind in _alternatives(self.annotation):
            if get_origin(kind) is Literal:
                return [str(word) for word in get_args(kind)]
        return []

    def length(self) -> int | None:
        """Return how many items a list must have here, where that is fixed."""
        for _, kind in _alternatives(self.annotation):
            if get_origin(kind) is tuple and ... not in get_args(kind):
                return len(get_args(kind))
        return None


def place_at(model: type[BaseModel], location: Sequence[str | int]) -> Place:
    """Return what a model has at a location; `[key]` stands for the mapping itself."""
    place = Place(model, None)
    for part in location:
        if part == "[key]" or place.annotation is None:
            break
        place = _step(place, part)
    return place


def _step(place: Place, part: str | int) -> Place:
    for tag, kind in _alternatives(place.annotation):
        if tag is not None and tag == part:
            return Place(kind, place.field)
        if _is_model(kind) and part in kind.model_fields:
            field = kind.model_fields[str(part)]
            return Place(field.annotation, field)
        if get_origin(kind) is dict:
            return Place(get_args(kind)[1], place.field)
        if get_origin(kind) is tuple and isinstance(part, int):
            items = get_args(kind)
            if items[-1] is ...:
                return Place(items[0], place.field)
            return Place(items[part] if part < len(items) else None, place.field)
    return Place(None, place.field)


def _alternatives(annotation: Any, tag: str | None = None) -> list[tuple[str | None, Any]]:
    """Return (tag, type) of everything that a value may be, without what is only metadata."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        tag = next((str(m.tag) for m in metadata if isinstance(m, Tag)), tag)
        return _alternatives(inner, tag)
    if get_origin(annotation) in (Union, UnionType):
        return [found for part in get_args(annotation) for found in _alternatives(part, tag)]
    return [(tag, annotation)]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
