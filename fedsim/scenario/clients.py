"""What a scenario says of the clients that were found: their budgets, and whose clips are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fedsim.errors import FedsimError, nearest

if TYPE_CHECKING:
    from fedsim.scenario.schema import ClientSettings, Scenario


def wrong_sources(
    scenario: Scenario, keys: Sequence[str]
) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Yield a sentence and its place for each `tuned_on` that means nobody among `keys`."""
    words = ("own", "other", "each")
    for i, method in enumerate(scenario.methods):
        for j, source in enumerate(method.tuned_on):
            place = ("methods", i, "tuned_on", j)
            if source in words[1:] and len(keys) < 2:
                yield (
                    f"{source!r} needs two clients or more, and there is {len(keys) or 'none'}",
                    place,
                )
            elif source not in words and source not in keys:
                yield f"{source!r} is no client of it: {nearest(source, (*words, *keys))}", place


def check_sources(scenario: Scenario, keys: Sequence[str]) -> None:
    """Check every `tuned_on` against the clients that were found.

    Raises:
        FedsimError: if one names a client that is not among `keys`, or another client where there
            is only one.
    """
    for sentence, place in wrong_sources(scenario, keys):
        raise FedsimError(f"{'.'.join(map(str, place))}: {sentence}")


def client_budgets(settings: ClientSettings, keys: Sequence[str]) -> dict[str, int]:
    """Return each client's budget in bytes (MB = 2^20 bytes, rounded down).

    Args:
        settings: a scenario's `clients`.
        keys: the keys of all clients that take part; a list of budgets is dealt round to them in
            sorted order, whatever order they come in.

    Raises:
        FedsimError: if budgets are given by client and one of `keys` has none.
    """
    ordered, budget = sorted(keys), settings.budget_mb
    if isinstance(budget, dict):
        for key in ordered:
            if key not in budget:
                hint = nearest(key, budget)
                raise FedsimError(f"client {key!r} has no budget in clients.budget_mb: {hint}")
        megabytes = [budget[key] for key in ordered]
    elif isinstance(budget, tuple):
        megabytes = [budget[i % len(budget)] for i in range(len(ordered))]
    else:
        megabytes = [budget] * len(ordered)
    return {key: int(mb * 2**20) for key, mb in zip(ordered, megabytes, strict=True)}
