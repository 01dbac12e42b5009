"""Every setting of a scenario, found by going through the schema; scenarios with one of them
changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedsim.scenario.schema import Scenario


@dataclass(frozen=True)
class SchemaField:
    """One setting; `path` are its keys, without the places of items in lists."""

    path: tuple[str, ...]
    info: FieldInfo

    @property
    def key(self) -> str:
        return ".".join(self.path)

    def metadata(self, kind: type) -> list[Any]:
        """What the setting, or the items in it, is annotated with."""
        parts = (*self.info.metadata, *inside(self.info.annotation))
        return [part for part in parts if isinstance(part, kind)]


def inside(annotation: Any) -> Iterator[Any]:
    """An annotation and everything in it, such as the types of the items of a tuple."""
    yield annotation
    for part in get_args(annotation):
        yield from inside(part)


def section_of(info: FieldInfo) -> type[BaseModel] | None:
    """The section that a setting is, or is a list of; None for a value."""
    for part in inside(info.annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def all_fields(
    section: type[BaseModel] = Scenario, path: tuple[str, ...] = ()
) -> Iterator[SchemaField]:
    """Every setting that is a value, sections in place of themselves."""
    for name, info in section.model_fields.items():
        below = section_of(info)
        if below is None:
            yield SchemaField((*path, name), info)
        else:
            yield from all_fields(below, (*path, name))


def all_sections(
    section: type[BaseModel] = Scenario, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """Every section with its keys, the scenario itself first."""
    yield path, section
    for name, info in section.model_fields.items():
        below = section_of(info)
        if below is not None:
            yield from all_sections(below, (*path, name))


def changed(document: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The document with `value` at a path; of a list on the way its first item."""
    result = copy.deepcopy(document)
    here: Any = result
    for key in path[:-1]:
        here = here.setdefault(key, [{}] if key in ("methods", "faults") else {})
        if isinstance(here, list):
            here = here[0]
    here[path[-1]] = value
    return result
