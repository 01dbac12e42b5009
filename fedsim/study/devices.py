"""The device of each client: its budget, its bit depths and its memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.base.units import MB
from fedsim.errors import FedsimError, nearest
from fedsim.fleet.devices import DeviceProfile, load_catalogue
from fedsim.fleet.sampling import open_fleet
from fedsim.scenario.schema import Scenario


@dataclass(frozen=True)
class Limits:
    """What a client's device can hold and execute."""

    budget_bytes: int
    """Maximum size of a model file."""
    bit_depths: tuple[int, ...]
    """Bit depths of weights that its runtime executes, ascending."""
    memory_bytes: int | None = None
    """Working memory for a model while it senses; None: unlimited."""


class Devices(Mapping[str, Limits]):
    """Client key -> limits of its device, in sorted order; computed on access, not stored.

    Args:
        scenario: sets budgets (a list is assigned to the keys cyclically), bit depths, the fleet.
        keys: of all clients that take part, in any order.

    Raises:
        FedsimError: at once if budgets are given per client and one has none, or for an invalid
            fleet; on access, if the device executes none of the scenario's bit depths.
    """

    def __init__(self, scenario: Scenario, keys: Sequence[str]) -> None:
        self._scenario = scenario
        self._budgets = _budgets(scenario, sorted(keys))
        self._fleet = None
        if scenario.fleet is not None:
            fleet = scenario.fleet
            catalogue = load_catalogue(None if fleet.catalogue is None else Path(fleet.catalogue))
            self._fleet = open_fleet(fleet.settings(), catalogue, scenario.seed, sorted(keys))

    def profile(self, key: str) -> DeviceProfile | None:
        """Return the profile of a client's device; None without a fleet."""
        return None if self._fleet is None else self._fleet[key]

    def __getitem__(self, key: str) -> Limits:
        budget = self._budgets[key]
        legal = self._scenario.clients.bit_depths
        profile = self.profile(key)
        if profile is None:
            assert budget is not None
            return Limits(int(budget * MB), legal)
        depths = tuple(b for b in legal if b in profile.bit_depths)
        if not depths:
            raise FedsimError(
                f"client {key!r}: its {profile.device} executes {_listed(profile.bit_depths)} bits "
                f"and clients.bit_depths allows {_listed(legal)}; allow one that it executes"
            )
        megabytes = profile.budget_mb if budget is None else budget
        return Limits(int(megabytes * MB), depths, int(profile.memory_mb * MB))

    def __iter__(self) -> Iterator[str]:
        return iter(self._budgets)

    def __len__(self) -> int:
        return len(self._budgets)


def _budgets(scenario: Scenario, ordered: Sequence[str]) -> dict[str, float | None]:
    """Return client key -> budget in MB; None: the budget of its device in the fleet."""
    budget = scenario.clients.budget_mb
    if isinstance(budget, dict):
        for key in ordered:
            if key not in budget:
                hint = nearest(key, budget)
                raise FedsimError(
                    f"client {key!r} has no budget in clients.budget_mb; add one ({hint})"
                )
        return {key: budget[key] for key in ordered}
    if isinstance(budget, tuple):
        return {key: budget[i % len(budget)] for i, key in enumerate(ordered)}
    return dict.fromkeys(ordered, budget)


def _listed(depths: Sequence[int]) -> str:
    return ", ".join(map(str, depths))
