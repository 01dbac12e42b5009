"""Entries of a registry for one test, as an installed plug-in would add them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedsim.registry import Registry, T


@contextmanager
def added(registry: Registry[T], name: str, entry: T) -> Iterator[T]:
    """Add an entry, and take it out again at the end."""
    registry.add(name, entry)
    try:
        yield entry
    finally:
        del registry._entries[name]
