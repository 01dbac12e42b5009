"""Clients whose clips share forward passes, so that they fill a GPU (`fedsim.speech.together`).

Which clients share a pass follows from the scenario alone: neighbours in its list of clients, in
groups of a fixed size. So the bits of a result do not depend on which client was asked first, on
how many workers there are, or on where a run was cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fedsim.base.accelerators import is_lost
from fedsim.base.cache import LRUCache
from fedsim.errors import FedsimError
from fedsim.speech.clips import ClientData
from fedsim.speech.eligible import check_metadata
from fedsim_clients.runtime import Runtime

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class GroupResults(Generic[T]):
    """Client key -> the result of a pass that a group shared; empty where the pass failed.

    A cache keeps or drops them as one: were some dropped, the whole group would be computed again
    for each of these.
    """

    results: dict[str, T]

    @property
    def nbytes(self) -> int:
        """Bytes of all results that say how many they take."""
        return sum(getattr(result, "nbytes", 0) for result in self.results.values())


def group_of(runtime: Runtime, data: ClientData) -> list[ClientData]:
    """Return the clients that share passes of the full-precision model with this one, itself among
    them, in the order of the scenario's clients.

    Those whose devices hold the model otherwise than whole pass it alone; so do those that speak
    another language, and those that cannot take part.
    """
    size, language = runtime.clients_per_batch, data.language
    if size == 1:
        return [data]

    def find() -> list[ClientData]:
        first = runtime.places[data.key] // size * size
        found = [_neighbour(runtime, key, language) for key in runtime.keys[first : first + size]]
        return [other for other in found if other is not None]

    group: list[ClientData] = small_results(runtime, data).get(("group", language), find)
    return group if any(other.key == data.key for other in group) else [data]


def small_results(runtime: Runtime, data: ClientData) -> LRUCache[Any]:
    """Return the cache of a client's group for results that take little memory."""
    place = runtime.places[data.key] // runtime.clients_per_batch
    return runtime.groups.get(place, LRUCache)


def key_of(what: Hashable, group: Sequence[ClientData]) -> Hashable:
    """Return the key under which a cache keeps what a group shares; `what` names it."""
    return what, tuple(other.key for other in group)


def shared(
    cache: LRUCache[Any],
    what: Hashable,
    group: Sequence[ClientData],
    data: ClientData,
    together: Callable[[Sequence[ClientData]], dict[str, T]],
    alone: Callable[[], T],
) -> T:
    """Return a client's result, computed for its whole group when the first of it is asked.

    Where the group's pass fails, each computes alone, so that an error is only of the client that
    causes it.

    Args:
        cache: keeps the group's results until its other clients are asked.
        what: names the result.
        group: clients that share a pass, `data` among them.
        data: the client.
        together: returns client key -> result; a client may be missing, and computes alone then.
        alone: returns the client's result.
    """
    if len(group) == 1:
        return alone()
    found: GroupResults[T] = cache.get(
        key_of(what, group), lambda: GroupResults(_attempt(together, group))
    )
    return found.results[data.key] if data.key in found.results else alone()


def _attempt(
    together: Callable[[Sequence[ClientData]], dict[str, T]], group: Sequence[ClientData]
) -> dict[str, T]:
    """Return what `together` returns; nothing where it fails, perhaps because of one client."""
    try:
        return together(group)
    except MemoryError:
        raise
    except Exception as error:
        if is_lost(error):
            raise
        return {}


def _neighbour(runtime: Runtime, key: str, language: str | None) -> ClientData | None:
    """Return a client of the group, None for one that shares no pass with the others."""
    try:
        other = runtime.data(key)
        check_metadata(other, runtime.scenario.corpus)
        joins = other.language == language and runtime.mode(key) == "full"
    except FedsimError:  # said when the client itself is asked
        return None
    return other if joins else None
