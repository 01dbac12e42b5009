"""Which device each client has: drawn from shares of classes, or taken from a trace.

Quantities that vary between devices of a class may depend on each other by a Gaussian copula: each
quantity is the quantile of its distribution at a standard normal number, and these numbers are
correlated (Nelsen 2006, "An Introduction to Copulas", section 2.3).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from fedsim.base.seeds import client_rng
from fedsim.errors import FedsimError, nearest
from fedsim.fleet.devices import (
    DeviceClass,
    DeviceProfile,
    check_depths,
    check_number,
    vary,
)
from fedsim.fleet.trace import deal, read_trace
from fedsim.fleet.windows import shift_hours

QUANTITIES = ("budget_mb", "memory_mb", "speed", "link", "battery", "bit_depths")
"""What may vary within a class: two sizes in MB, three factors, and the runtime's bit depths."""
_TOLERANCE = 1e-6  # of a sum of shares
_LEAST, _MOST = 1e-6, 1e6  # of a size in MB, or a factor
_EXPONENT = 100.0  # e to it is beyond every bound
_LEAST_EIGENVALUE = -1e-9  # rounding of a singular matrix

Draw = Callable[[float], Any]
"""A standard normal number -> the quantity's value there."""


@dataclass(frozen=True)
class Share:
    """One class of a fleet: how many of the clients have it, and what varies among them."""

    device: str
    share: float
    """Probability of a client to have such a device."""
    draws: Mapping[str, Draw]
    """Quantity -> its distribution; what is left out is the class's own number."""


@dataclass(frozen=True)
class FleetSettings:
    """What a scenario says under `fleet`, checked; see `read_fleet`."""

    catalogue: str | None = None
    """Path of the user's own device catalogue."""
    devices: tuple[Share, ...] = ()
    mixing: tuple[tuple[float, ...], ...] = ()
    """Square root of the quantities' correlations, (quantities, quantities)."""
    trace: str | None = None
    """Path of a table of devices, in place of `devices`."""


def read_fleet(raw: Mapping[str, Any]) -> FleetSettings:
    """Return the settings that a scenario's `fleet` says.

    Args:
        raw: `catalogue` (a path), `devices` (class -> its share, or share and quantities),
            `correlation` (quantity -> quantity -> -1..1), `trace` (a path, instead of `devices`).
            A quantity is a number; [low, high], uniform; {median, spread}, log-normal with spread
            the standard deviation of the logarithm; {mean, std}, normal above zero; or {choices,
            weights}. Of `bit_depths` it is a list of depths, or choices among such lists.

    Raises:
        FedsimError: `fleet.key: ` and what is wrong: an unknown key, shares that do not add up to
            1, a distribution that is none, correlations that cannot all hold.
    """
    _known(raw, "fleet", ("catalogue", "devices", "correlation", "trace"))
    devices, trace = raw.get("devices"), raw.get("trace")
    if (devices is None) == (trace is None):
        both = "both" if trace is not None else "neither"
        raise FedsimError(f"fleet: it has {both} of devices and trace: give one of them")
    if trace is not None:
        if raw.get("correlation"):
            raise FedsimError("fleet.correlation: a trace has its own: leave it out")
        return FleetSettings(catalogue=raw.get("catalogue"), trace=str(trace))
    if not isinstance(devices, Mapping) or not devices:
        raise FedsimError("fleet.devices: name at least one class and its share, as watch: 1")
    shares = tuple(_share(name, entry) for name, entry in devices.items())
    total = math.fsum(share.share for share in shares)
    if abs(total - 1) > _TOLERANCE:
        raise FedsimError(f"fleet.devices: the shares add up to {total:g}: they must to 1")
    varying = {name for share in shares for name in share.draws}
    mixing = _mixing(raw.get("correlation") or {}, varying)
    return FleetSettings(raw.get("catalogue"), shares, mixing)


def check_fleet(settings: FleetSettings, catalogue: Mapping[str, DeviceClass]) -> None:
    """Raise `FedsimError` for a class that the catalogue does not have."""
    for share in settings.devices:
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
    chosen = _at(settings.devices, [share.share for share in settings.devices], which)
    found = catalogue[chosen.device]
    values = {
        name: chosen.draws[name](math.fsum(a * b for a, b in zip(row, independent, strict=True)))
        for name, row in zip(QUANTITIES, settings.mixing, strict=True)
        if name in chosen.draws
    }
    hours = shift_hours(found.profile.available, (2 * shift - 1) * found.shift_h)
    return vary(replace(found.profile, available=hours), values)


def _share(name: str, raw: Any) -> Share:
    where = f"fleet.devices.{name}"
    entry = raw if isinstance(raw, Mapping) else {"share": raw}
    _known(entry, where, ("share", *QUANTITIES))
    if "share" not in entry:
        raise FedsimError(f"{where}: it has no share: add how many of the clients have one")
    draws = {}
    for quantity in QUANTITIES:
        if quantity in entry:
            try:
                depths = quantity == "bit_depths"
                draws[quantity] = (_depths if depths else _number)(entry[quantity])
            except FedsimError as error:
                raise FedsimError(f"{where}.{quantity}: {error}") from None
    try:
        share = check_number(entry["share"], may_be_zero=True)
    except FedsimError as error:
        raise FedsimError(f"{where}.share: {error}") from None
    return Share(name, share, draws)


def _number(raw: Any) -> Draw:
    """Return the distribution of a number, kept from `_LEAST` to `_MOST` where it is drawn."""
    draw = _drawn(raw)
    return lambda z: min(max(draw(z), _LEAST), _MOST)


def _in_span(raw: Any) -> float:
    value = check_number(raw)
    if not _LEAST <= value <= _MOST:
        raise FedsimError(f"{raw!r} is out of range: it must be {_LEAST:g} to {_MOST:g}")
    return value


def _drawn(raw: Any) -> Draw:
    if isinstance(raw, list | tuple):
        if len(raw) != 2:
            raise FedsimError(f"{list(raw)!r} is no [low, high]: for more use {{choices: ...}}")
        low, high = (_in_span(v) for v in raw)
        if low > high:
            raise FedsimError(f"[{low:g}, {high:g}] runs down: the lower number comes first")
        return lambda z: low + (high - low) * _below(z)
    if not isinstance(raw, Mapping):
        value = _in_span(raw)
        return lambda z: value
    if "choices" in raw:
        return _choices(raw, _in_span)
    for first, second in (("median", "spread"), ("mean", "std")):
        if first in raw:
            _known(raw, "", (first, second))
            if second not in raw:
                raise FedsimError(f"{first} needs {second}: add it")
            middle, width = _in_span(raw[first]), check_number(raw[second], may_be_zero=True)
            if first == "median":
                return lambda z: middle * math.exp(min(width * z, _EXPONENT))
            return lambda z: _truncated(middle, width, z)
    raise FedsimError(
        "it is no distribution: give a number, [low, high], {median, spread}, {mean, std} or "
        "{choices}"
    )


def _depths(raw: Any) -> Draw:
    if isinstance(raw, Mapping):
        return _choices(raw, lambda depths: check_depths(_listed(depths)))
    value = check_depths(_listed(raw))
    return lambda z: value


def _listed(raw: Any) -> Sequence[Any]:
    if not isinstance(raw, list | tuple):
        raise FedsimError(f"{raw!r} is no list of bit depths: write one such as [4, 8]")
    return raw


def _choices(raw: Mapping[str, Any], check: Callable[[Any], Any]) -> Draw:
    _known(raw, "", ("choices", "weights"))
    choices = raw.get("choices")
    if not isinstance(choices, list | tuple) or not choices:
        raise FedsimError("choices: list at least one value")
    values = [check(value) for value in choices]
    weights = raw.get("weights", [1] * len(values))
    if not isinstance(weights, list | tuple) or len(weights) != len(values):
        raise FedsimError(f"weights: there are {len(values)} choices: list one weight for each")
    numbers = [check_number(weight, may_be_zero=True) for weight in weights]
    if not any(numbers):
        raise FedsimError("weights: all are zero: make one larger")
    return lambda z: _at(values, numbers, _below(z))


def _at(values: Sequence[Any], weights: Sequence[float], u: float) -> Any:
    """Return the value at `u` of 0..1 where each takes as much room as its weight."""
    ends = list(accumulate(weights))
    last = max(i for i, weight in enumerate(weights) if weight > 0)
    return values[min(bisect_right(ends, u * ends[-1]), last)]


def _below(z: float) -> float:
    """Return the probability that a standard normal number is below `z`."""
    return 0.5 * math.erfc(-z / math.sqrt(2))


def _truncated(mean: float, std: float, z: float) -> float:
    """Return the quantile at `z` of a normal distribution of which only what is above 0 is left."""
    if std == 0:
        return mean
    from scipy.special import log_ndtr, ndtri_exp

    # From above, in logarithms: the tail that is cut off is below, and none of this rounds to 1.
    rest = float(log_ndtr(-z) + log_ndtr(mean / std))
    return max(mean - std * float(ndtri_exp(rest)), math.ulp(0.0))


def _mixing(raw: Any, varying: set[str]) -> tuple[tuple[float, ...], ...]:
    """Return the symmetric square root of the matrix of correlations."""
    import numpy as np

    where = "fleet.correlation"
    matrix = np.eye(len(QUANTITIES))
    if not isinstance(raw, Mapping):
        raise FedsimError(f"{where}: write it as budget_mb: {{speed: 0.6}}")
    _known(raw, where, QUANTITIES)
    for first, others in raw.items():
        if not isinstance(others, Mapping):
            raise FedsimError(f"{where}.{first}: write it as {first}: {{speed: 0.6}}")
        _known(others, f"{where}.{first}", [q for q in QUANTITIES if q != first])
        for second, value in others.items():
            place = f"{where}.{first}.{second}"
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1:
                raise FedsimError(f"{place}: {value!r} is no number from -1 to 1: write one")
            for name in (first, second):
                if name not in varying:
                    raise FedsimError(f"{place}: {name} varies in no class: let it, or leave out")
            i, j = QUANTITIES.index(first), QUANTITIES.index(second)
            if matrix[i, j] not in (0, value):
                raise FedsimError(
                    f"{place}: it is {matrix[i, j]:g} the other way round: say it once"
                )
            matrix[i, j] = matrix[j, i] = value
    values, vectors = np.linalg.eigh(matrix)
    if values[0] < _LEAST_EIGENVALUE:
        raise FedsimError(
            f"{where}: these cannot all hold at once (the matrix has the eigenvalue "
            f"{values[0]:.3g}): bring them nearer to 0"
        )
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return tuple(map(tuple, root.tolist()))


def _known(raw: Mapping[str, Any], where: str, keys: Sequence[str]) -> None:
    for key in raw:
        if key not in keys:
            place = f"{where}.{key}: " if where else ""
            raise FedsimError(f"{place}there is no {key!r} here: {nearest(str(key), keys)}")
