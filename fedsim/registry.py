"""One mechanism for every choice that a scenario names: a small registry per family.

A YAML name is a registry key, an entry a small frozen value: what it does, what it is called in
lists, and the traits that the rest of fedsim asks for. Other packages add entries through the
entry-point group `fedsim.<family>`; each entry point names such a value, and is loaded when its
name is asked for, or when names are listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, Protocol, TypeVar

from fedsim.errors import FedsimError, nearest


class Entry(Protocol):
    """What every entry of a registry has."""

    @property
    def summary(self) -> str:
        """One line for `fedsim list`."""


T = TypeVar("T", bound=Entry)


class Registry(Generic[T]):
    """Named entries of one family (sensitivity, allocation, calibration, release, ...)."""

    def __init__(self, family: str) -> None:
        self.family = family
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Add an entry under its YAML name; a name taken twice is a programming error."""
        if name in self._entries:
            raise ValueError(f"{self.family} {name!r} is registered twice")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        """Return the entry called `name`; raise `FedsimError` with the nearest known name."""
        if name not in self._entries:
            self._load_entry_points()
        if name not in self._entries:
            raise FedsimError(f"there is no {self.family} {name!r}: {nearest(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> list[str]:
        """Return every known name, those of installed plug-ins included, in order."""
        self._load_entry_points()
        return sorted(self._entries)

    def describe(self) -> dict[str, str]:
        """Return name -> summary of the entry."""
        return {name: self[name].summary for name in self.names()}

    def _load_entry_points(self) -> None:
        for point in entry_points(group=f"fedsim.{self.family.replace(' ', '_')}"):
            if point.name not in self._entries:
                self._entries[point.name] = point.load()


@dataclass(frozen=True)
class Lazy:
    """A function or class in another module, which is imported when it is first called.

    For entries whose code needs what takes seconds to import, such as torch: scenarios are checked
    and choices listed without it.
    """

    reference: str
    """`package.module:name`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        return _load(self.reference)(*args, **kwargs)


@cache
def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)
