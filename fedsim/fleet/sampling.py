"""Which device each client has: drawn from shares of classes, or taken from a trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedsim.base.seeds import client_rng
from fedsim.errors import FedsimError, nearest
from fedsim.fleet.devices import DeviceClass, DeviceProfile, vary
from fedsim.fleet.distributions import QUANTITIES, Distribution, correlation_root, pick
from fedsim.fleet.trace import deal, read_trace
from fedsim.fleet.windows import shift_hours


@dataclass(frozen=True)
class Share:
    """One class of a fleet: how many of the clients have it, and what varies among them."""

    device: str
    share: float
    """Probability of a client to have such a device."""
    distributions: Mapping[str, Distribution] = field(default_factory=dict)
    """One of `QUANTITIES` -> what it is drawn from; for others, the class's own number."""


@dataclass(frozen=True)
class FleetSettings:
    """What the devices of a fleet are drawn from, or the table that lists them."""

    catalogue: str | None = None
    """Path of the user's own device catalogue."""
    shares: tuple[Share, ...] = ()
    """Add up to 1; empty where there is a trace."""
    correlation_root: tuple[tuple[float, ...], ...] = field(
        default_factory=lambda: correlation_root({})
    )
    """Square root of the quantities' correlations, (quantities, quantities)."""
    trace: str | None = None
    """Path of a table of devices, in place of `shares`."""


def check_fleet(settings: FleetSettings, catalogue: Mapping[str, DeviceClass]) -> None:
    """Raise `FedsimError` for a class that the catalogue does not have."""
    for share in settings.shares:
        if share.device not in catalogue:
            hint = nearest(share.device, catalogue)
            raise FedsimError(f"fleet.devices: there is no device class {share.device!r}: {hint}")


class Fleet(Mapping[str, DeviceProfile]):
    """Client key -> its device; a drawn one is drawn when asked for, so that none is kept."""

    def __init__(self, keys: Sequence[str], device: Callable[[str], DeviceProfile]) -> None:
        self._keys, self._device = keys, device

    def __getitem__(self, key: str) -> DeviceProfile:
        return self._device(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def open_fleet(
    settings: FleetSettings, catalogue: Mapping[str, DeviceClass], seed: int, keys: Iterable[str]
) -> Fleet:
    """Return the devices of these clients, by key in sorted order.

    Drawn devices depend on nothing but settings, seed and key (`sample_profile`). A trace with a
    column `client` is looked up by key; rows of one without are dealt round in sorted key order.

    Raises:
        FedsimError: for a class that the catalogue does not have, a bad trace, and a client that
            a trace does not list.
    """
    check_fleet(settings, catalogue)
    ordered = sorted(keys)
    if settings.trace is not None:
        return Fleet(
            ordered, deal(read_trace(Path(settings.trace), catalogue), ordered).__getitem__
        )
    return Fleet(ordered, lambda key: sample_profile(settings, catalogue, seed, key))


def sample_profile(
    settings: FleetSettings, catalogue: Mapping[str, DeviceClass], seed: int, client: str
) -> DeviceProfile:
    """Return the device of one client, drawn by `client_rng(seed, client, "device")` alone.

    Shares are probabilities: a fleet of n clients has about n times its share of each class. A
    client's device is the same whoever else takes part. Every draw has a place of its own among
    the random numbers, so a quantity that begins to vary changes no other.
    """
    rng = client_rng(seed, client, "device")
    which, shift = rng.random(2).tolist()
    independent = rng.standard_normal(len(QUANTITIES)).tolist()
    chosen: Share = pick(settings.shares, [share.share for share in settings.shares], which)
    found = catalogue[chosen.device]
    values = {
        name: chosen.distributions[name].at(
            math.fsum(a * b for a, b in zip(row, independent, strict=True))
        )
        for name, row in zip(QUANTITIES, settings.correlation_root, strict=True)
        if name in chosen.distributions
    }
    hours = shift_hours(found.profile.available, (2 * shift - 1) * found.shift_h)
    return vary(replace(found.profile, available=hours), values)
