"""A cache of the most recently used values, bounded by their bytes and their number."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class LRUCache(Generic[T]):
    """Keeps the most recently used values, up to `max_bytes` and `max_values`, but at least one.

    A value's bytes are its `nbytes`; a value without that attribute counts as 0 bytes.
    """

    def __init__(self, max_bytes: float = math.inf, max_values: float = math.inf) -> None:
        self._max_bytes, self._max_values = max_bytes, max_values
        self._bytes = 0
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value for `key`, calling `make` if it is not in the cache; do not write to
        it."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        self._bytes += _nbytes(value)
        while len(self._values) > 1 and (
            self._bytes > self._max_bytes or len(self._values) > self._max_values
        ):
            self._bytes -= _nbytes(self._values.popitem(last=False)[1])
        return value


def _nbytes(value: object) -> int:
    return int(getattr(value, "nbytes", 0))
