"""One mechanism for every choice that a scenario names: a small registry for each family.

A name in YAML is a key of a registry. An entry is a small frozen value: the function behind the
name, a one-line summary, and the traits that the rest of fedsim reads. Other packages add entries
through the entry-point group `fedsim.<family>`, a space in the family written as `_`. Each entry
point refers to such a value, and is loaded when names are listed or an unknown one is looked up.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, Generic, Protocol, TypeVar

from fedsim.errors import FedsimError, nearest


class Entry(Protocol):
    """The attributes that every entry of a registry has."""

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
        """Add an entry under its name in YAML; raise `ValueError` for a name that is taken."""
        if name in self._entries:
            raise ValueError(f"{self.family} {name!r} is registered twice")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        """Return the entry called `name`; if there is none, raise `FedsimError` with a hint."""
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
        """Return every known name in order, those of installed plug-ins included."""
        self._load_entry_points()
        return sorted(self._entries)

    def describe(self) -> dict[str, str]:
        """Return name -> summary for every entry."""
        return {name: self[name].summary for name in self.names()}

    def _load_entry_points(self) -> None:
        group = f"fedsim.{self.family.replace(' ', '_')}"
        for point in _installed(group, tuple((place, _changed(place)) for place in sys.path)):
            if point.name not in self._entries:
                self._entries[point.name] = _load_entry(point)


@lru_cache(maxsize=64)
def _installed(group: str, places: tuple[tuple[str, int], ...]) -> EntryPoints:
    """Return the entry points of a group; read again once a package was installed or removed.

    A run asks hundreds of times for the names of a family, and reading takes milliseconds.

    Args:
        group: its name.
        places: the folders of `sys.path`, and when each was changed.
    """
    return entry_points(group=group)


def _changed(place: str) -> int:
    try:
        return os.stat(place or os.curdir).st_mtime_ns
    except OSError:
        return 0


def _load_entry(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:  # whatever the code of another package raises while it is imported
        package = point.dist.name if point.dist else point.module
        raise FedsimError(
            f"the plug-in {package} cannot be loaded: its entry {point.name!r} in {point.group}"
            f" ({point.value}) raises {type(error).__name__}: {error}; repair or uninstall it"
        ) from error


@dataclass(frozen=True)
class Lazy:
    """A function or class of another module, which is imported at the first call.

    For entries whose code imports torch or another slow package: scenarios are checked and names
    are listed without it.
    """

    reference: str
    """`package.module:name`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Import the function or class if necessary, and call it."""
        return _load(self.reference)(*args, **kwargs)


@cache
def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)
