"""Clients whose clips share forward passes, so that they fill a GPU (`fedsim.speech.together`).

Which clients share a pass follows from the scenario alone: neighbours in its list of clients, in
groups of a fixed size. So the bits of a result do not depend on which client was asked first, on
how many workers there are, or on where a run was cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from fedsim.base.accelerators import is_lost
from fedsim.errors import FedsimError
from fedsim.speech.clips import ClientData
from fedsim_clients.runtime import Runtime

T = TypeVar("T")


def group_of(runtime: Runtime, data: ClientData) -> list[ClientData]:
    """Return the clients that share passes of the full-precision model with this one, itself among
    them, in the order of the scenario's clients.

    Those whose devices hold the model otherwise than whole pass it alone; so do those that speak
    another language.
    """
    size = runtime.clients_per_batch
    if size == 1:
        return [data]
    first = runtime.places[data.key] // size * size
    keys = runtime.keys[first : first + size]
    return [other for other in map(runtime.data, keys) if _joins(runtime, data, other)]


def _joins(runtime: Runtime, data: ClientData, other: ClientData) -> bool:
    if other.language != data.language:
        return False
    try:
        return runtime.mode(other.key) == "full"
    except FedsimError:  # its device holds the model in no way, which is said when it is asked
        return False


def shared(
    runtime: Runtime,
    what: Hashable,
    group: Sequence[ClientData],
    data: ClientData,
    together: Callable[[Sequence[ClientData]], dict[str, T]],
    alone: Callable[[], T],
    keep: Callable[[str, Callable[[], T]], T] | None = None,
) -> T:
    """Return a client's result, computed for its whole group when the first of it is asked.

    Where the group's pass fails, each computes alone, so that an error is only of the client that
    causes it.

    Args:
        runtime: of this process.
        what: names the result.
        group: clients that share a pass, `data` among them.
        data: the client.
        together: returns client key -> result; a client may be missing, and computes alone then.
        alone: returns the client's result.
        keep: f(client key, make) -> the result of a client, kept until it is asked; None for small
            results, which the runtime remembers.
    """
    if len(group) == 1:
        return alone()
    kept = keep or (lambda key, make: runtime.remember((what, key), make))
    keys = tuple(other.key for other in group)
    apart = runtime.remember(("apart", what, keys), list)

    def compute() -> T:
        found: dict[str, T] = {}
        if not apart:
            try:
                found = together(group)
            except MemoryError:
                raise
            except Exception as error:
                if is_lost(error):
                    raise
                apart.append(type(error).__name__)
        for key in found.keys() - {data.key}:
            kept(key, lambda key=key: found[key])  # type: ignore[misc]
        return found[data.key] if data.key in found else alone()

    return kept(data.key, compute)
