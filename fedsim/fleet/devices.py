"""Device classes: what a watch, a phone or a car can hold, compute, send and spend.

The numbers are in `catalogue.yaml`, each with its source or with the word `assumed` and a reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode, Node

from fedsim.base.yamltree import Problem, compose, place, plain
from fedsim.errors import FedsimError, nearest
from fedsim.fleet.timeline import FLEET
from fedsim.fleet.windows import Hours, read_hours, write_hours

FULL = 32
"""Bit depth of full precision, in which sensing runs."""
DEPTHS = range(2, 17)
"""Bit depths that a quantized model may have."""
BUILT_IN = Path(__file__).with_name("catalogue.yaml")
_UNITS = {
    "budget_mb": "MB",
    "memory_mb": "MB",
    "read_mb_s": "MB/s",
    "down_mbit": "Mbit/s",
    "up_mbit": "Mbit/s",
    "latency_s": "s",
    "battery_j": "J",
    "joules_per_mb": "J/MB",
    "shift_h": "h",
}
_MAY_BE_ZERO = ("latency_s", "joules_per_mb", "joules_per_gmac", "shift_h")
_BY_DEPTH = {"macs_per_s": "MAC/s", "joules_per_gmac": "J/GMAC"}
_KEYS = (*_UNITS, *_BY_DEPTH, "bit_depths", "available")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class DeviceProfile:
    """What one device is. MB are 2^20 bytes, Mbit 10^6 bits, GMAC 10^9 multiply-accumulates."""

    device: str
    """Name of its class."""
    budget_mb: float
    """Largest model file, MB."""
    memory_mb: float
    """Working memory for a model and its activations, MB."""
    bit_depths: tuple[int, ...]
    """Bit depths of weights that its runtime executes, in order, each of 2..16."""
    macs_per_s: Mapping[int, float]
    """Bit depth -> MACs a second; has every one of `bit_depths` and 32, and may have more."""
    joules_per_gmac: Mapping[int, float]
    """Bit depth -> joules for 10^9 MACs; likewise."""
    read_mb_s: float
    """MB a second read from its storage."""
    down_mbit: float
    """Mbit a second of its own link, towards the device."""
    up_mbit: float
    """Mbit a second of its own link, from the device."""
    latency_s: float
    """Seconds before the first byte of a transfer, in either direction."""
    battery_j: float | None
    """Joules that it may spend; None is mains."""
    joules_per_mb: float
    """Joules of its radio for one MB, in either direction."""
    available: Hours
    """Windows of every day, local time, in which it is idle and on a link."""


@dataclass(frozen=True)
class Fact:
    """One number of a catalogue as a table shows it."""

    quantity: str
    """Such as `budget_mb`, `macs_per_s.8`."""
    value: str
    unit: str
    """Empty for bit depths and windows."""
    source: str
    """Where it is from, or `assumed: ` and why."""


@dataclass(frozen=True)
class DeviceClass:
    """A class of a catalogue: its typical device, how far windows are spread, and all sources."""

    profile: DeviceProfile
    shift_h: float
    """A device's windows lie up to this many hours earlier or later: habits, time zones."""
    facts: tuple[Fact, ...]


def load_catalogue(path: Path | None = None) -> dict[str, DeviceClass]:
    """Return name -> device class: the built-in ones, with those of the file at `path` over them.

    A class of the file that is built in too needs only the keys that differ; a new one needs all.

    Raises:
        FedsimError: `file:line: class.key: ` and what is wrong: the file is no catalogue, a key is
            unknown or missing, a number is out of range or says neither source nor assumed, a bit
            depth is outside 2..16, or one that the class supports, or 32, has no MACs a second.
    """
    classes = _read(BUILT_IN)
    for name, (where, keys) in _read(path).items() if path is not None else ():
        known = classes[name][1] if name in classes else {}
        classes[name] = (where, {**known, **keys})
    return {name: _device_class(name, *found) for name, found in classes.items()}


def check_profile(profile: DeviceProfile) -> None:
    """Raise `FedsimError` for a bit depth that a device supports without a speed or an energy."""
    for key, by_depth in (
        ("macs_per_s", profile.macs_per_s),
        ("joules_per_gmac", profile.joules_per_gmac),
    ):
        for bits in (*profile.bit_depths, FULL):
            if bits not in by_depth:
                what = "full precision (32)" if bits == FULL else f"{bits} bits"
                raise FedsimError(f"{profile.device}.{key}: there is none for {what}: add it")


def check_depths(depths: Iterable[Any]) -> tuple[int, ...]:
    """Return bit depths in order; raises `FedsimError` unless each is one of 2..16, given once."""
    depths = list(depths)
    for bits in depths:
        if type(bits) is not int or bits not in DEPTHS:
            raise FedsimError(f"{bits!r} is no bit depth: they are whole numbers from 2 to 16")
        if depths.count(bits) > 1:
            raise FedsimError(f"{bits} bits are listed twice: leave one out")
    if not depths:
        raise FedsimError("no bit depth is given: name at least one from 2 to 16")
    return tuple(sorted(depths))


def check_number(value: Any, *, may_be_zero: bool = False) -> float:
    """Return `value` as a float; raises `FedsimError` unless it is finite and above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FedsimError(f"{value!r} is no number: write one")
    if value < 0 or (value == 0 and not may_be_zero):
        least = "zero or more" if may_be_zero else "above zero"
        raise FedsimError(f"{value!r} is out of range: it must be {least}")
    return float(value)


def _read(path: Path) -> dict[str, tuple[str, dict[str, Node]]]:
    """Return class -> where it is said, and its keys."""
    try:
        root = compose(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise FedsimError(f"device catalogue {path} cannot be read as UTF-8: {error}") from error
    except Problem as error:
        raise FedsimError(str(error)) from None
    if not isinstance(root, MappingNode):
        raise FedsimError(f"{path}: a device catalogue is a mapping from class to its numbers")
    classes = {}
    for name, keys in root.value:
        where = place(name)[0]
        if not isinstance(keys, MappingNode):
            raise FedsimError(f"{where}: {name.value}: a device class is a mapping of its numbers")
        classes[name.value] = (where, {key.value: value for key, value in keys.value})
        for key, _ in keys.value:
            if key.value not in _KEYS:
                raise FedsimError(
                    f"{place(key)[0]}: {name.value}.{key.value}: there is no such key: "
                    f"{nearest(key.value, _KEYS)}"
                )
    return classes


def _device_class(name: str, where: str, keys: Mapping[str, Node]) -> DeviceClass:
    if name == FLEET:
        raise FedsimError(f"{where}: a class cannot be called {FLEET!r}, which tables mean all by")
    for key in _KEYS:
        if key not in keys:
            raise FedsimError(f"{where}: {name}.{key} is missing: add it")
    values: dict[str, Any] = {}
    facts: list[Fact] = []
    for key in _KEYS:
        try:
            values[key] = _value(key, keys[key], facts)
        except FedsimError as error:
            raise FedsimError(f"{place(keys[key])[0]}: {name}.{key}: {error}") from None
    energy = values["joules_per_gmac"]
    if not isinstance(energy, dict):
        values["joules_per_gmac"] = dict.fromkeys(values["macs_per_s"], energy)
    shift = values.pop("shift_h")
    profile = DeviceProfile(device=name, **values)
    try:
        check_profile(profile)
    except FedsimError as error:
        raise FedsimError(f"{place(keys['macs_per_s'])[0]}: {error}") from None
    return DeviceClass(profile, shift, tuple(facts))


def _value(key: str, node: Node, facts: list[Fact]) -> Any:
    """Return what a key says, and add it to `facts`."""
    raw = plain(node)
    zero = key in _MAY_BE_ZERO
    if key in _BY_DEPTH and not (isinstance(raw, dict) and "value" in raw):
        return _by_depth(key, raw, facts)
    value, source = _sourced(raw)
    if key == "bit_depths":
        if not isinstance(value, list):
            raise FedsimError(f"{value!r} is no list of bit depths: write one such as [4, 8]")
        value = check_depths(value)
        facts.append(Fact(key, " ".join(map(str, value)), "", source))
    elif key == "available":
        value = read_hours(str(value))
        facts.append(Fact(key, write_hours(value), "", source))
    elif key == "battery_j" and value is None:
        facts.append(Fact(key, "mains", "", source))
    elif key == "macs_per_s":
        raise FedsimError("one number is not enough: give one for each bit depth and for 32")
    else:
        value = check_number(value, may_be_zero=zero)
        unit = _UNITS.get(key) or _BY_DEPTH[key]
        facts.append(Fact(key, f"{value:.4g}", unit, source))
    return value


def _by_depth(key: str, raw: Any, facts: list[Fact]) -> dict[int, float]:
    if not isinstance(raw, dict) or not raw:
        raise FedsimError("a mapping from bit depth, such as 8 or 2-8, to a number belongs here")
    found: dict[int, float] = {}
    for depths, entry in raw.items():
        match = _RANGE.fullmatch(depths)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        inside = first == last == FULL or (first in DEPTHS and last in DEPTHS and first <= last)
        if not inside:
            raise FedsimError(
                f"{depths!r} is no bit depth from 2 to 16, no range of them and no 32"
            )
        try:
            value, source = _sourced(entry)
            value = check_number(value, may_be_zero=key in _MAY_BE_ZERO)
        except FedsimError as error:
            raise FedsimError(f"{depths}: {error}") from None
        for bits in range(first, last + 1):
            if bits in found:
                raise FedsimError(f"{bits} bits are given twice: leave one out")
            found[bits] = value
        facts.append(Fact(f"{key}.{depths}", f"{value:.4g}", _BY_DEPTH[key], source))
    return found


def _sourced(raw: Any) -> tuple[Any, str]:
    """Return a number's value, and where it is from."""
    if not isinstance(raw, dict) or "value" not in raw:
        raise FedsimError(
            f"{raw!r} stands alone: write {{value: ..., source: ...}} or {{value: ..., assumed: "
            f"why}}"
        )
    for key in raw:
        if key not in ("value", "source", "assumed"):
            hint = nearest(key, ("value", "source", "assumed"))
            raise FedsimError(f"a number has no {key!r}: {hint}")
    said = [(key, raw[key]) for key in ("source", "assumed") if key in raw]
    if len(said) != 1 or not isinstance(said[0][1], str) or not said[0][1].strip():
        raise FedsimError("it says not where it is from: add a source, or assumed and a reason")
    key, text = said[0]
    return raw["value"], text if key == "source" else f"assumed: {text}"


def scale(profile: DeviceProfile, speed: float = 1, link: float = 1) -> DeviceProfile:
    """Return the device `speed` times as fast, with links `link` times as fast."""
    return replace(
        profile,
        macs_per_s={bits: rate * speed for bits, rate in profile.macs_per_s.items()},
        down_mbit=profile.down_mbit * link,
        up_mbit=profile.up_mbit * link,
    )


def vary(profile: DeviceProfile, values: Mapping[str, Any]) -> DeviceProfile:
    """Return a device with these quantities: sizes and bit depths replaced, factors applied."""
    own = {k: values[k] for k in ("budget_mb", "memory_mb", "bit_depths") if k in values}
    if profile.battery_j is not None and "battery" in values:
        own["battery_j"] = profile.battery_j * values["battery"]
    varied = scale(replace(profile, **own), values.get("speed", 1), values.get("link", 1))
    check_profile(varied)
    return varied
