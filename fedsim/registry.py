"""One mechanism for every choice that a scenario names: a small registry per family.

A YAML name is a registry key. Other packages add entries through the entry-point group
`fedsim.<family>`; an entry point is loaded only when its name is asked for or listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from fedsim.errors import FedsimError, nearest

T = TypeVar("T", bound=Callable)


class Registry(Generic[T]):
    """Named entries of one family (sensitivity measures, allocators, calibrators, ...)."""

    def __init__(self, family: str) -> None:
        self.family = family
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate an entry with its YAML name; a name taken twice is a programming error."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.family} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """Return the entry called `name`; raise `FedsimError` with the nearest known name."""
        if name not in self._entries:
            self._load_entry_points()
        if name not in self._entries:
            raise FedsimError(f"there is no {self.family} {name!r}: {nearest(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> list[str]:
        """Return every known name, those of installed plug-ins included, in order."""
        self._load_entry_points()
        return sorted(self._entries)

    def describe(self) -> dict[str, str]:
        """Return name -> first line of the entry's docstring."""
        return {n: (self[n].__doc__ or "").strip().split("\n")[0] for n in self.names()}

    def _load_entry_points(self) -> None:
        for point in entry_points(group=f"fedsim.{self.family.replace(' ', '_')}"):
            if point.name not in self._entries:
                self._entries[point.name] = point.load()
