"""A cache of arrays that is bounded by their bytes and their number."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=_Sized)


class Recent(Generic[T]):
    """Keeps the values used last, up to `limit` bytes and `most` values, and the very last in any
    case."""

    def __init__(self, limit: int, most: float = math.inf) -> None:
        self._limit, self._most = limit, most
        self._bytes = 0
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` returned for `key`, to be read only; made again once forgotten."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        self._bytes += value.nbytes
        while len(self._values) > 1 and (
            self._bytes > self._limit or len(self._values) > self._most
        ):
            self._bytes -= self._values.popitem(last=False)[1].nbytes
        return value
