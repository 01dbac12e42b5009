"""Device classes: what a watch, a phone or a car can hold, compute, send and spend.

The numbers are in `catalogue.yaml`, each with its source, or with `assumed` and a reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode, Node

from fedsim.base.files import read_text
from fedsim.base.yamltree import MAX_BYTES, Problem, compose, place, plain
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
    """What one device can do. MB are 2^20 bytes, Mbit 10^6 bits, GMAC 10^9 multiply-accumulates."""

    device: str
    """Name of its class."""
    budget_mb: float
    """Largest model file, MB."""
    memory_mb: float
    """Working memory for a model and its activations, MB."""
    bit_depths: tuple[int, ...]
    """Bit depths of weights that its runtime supports, ascending, each in 2..16."""
    macs_per_s: Mapping[int, float]
    """Bit depth -> MACs per second, for each of `bit_depths` and 32, and possibly others."""
    joules_per_gmac: Mapping[int, float]
    """Bit depth -> joules for 10^9 MACs, for the same bit depths."""
    read_mb_s: float
    """MB per second read from its storage."""
    down_mbit: float
    """Mbit per second of its own link, towards the device."""
    up_mbit: float
    """Mbit per second of its own link, from the device."""
    latency_s: float
    """Seconds before the first byte of a transfer, in either direction."""
    battery_j: float | None
    """Joules that it may spend; None is mains power."""
    joules_per_mb: float
    """Joules of its radio for one MB, in either direction."""
    available: Hours
    """Windows of every day, local time, in which it is idle and connected."""


@dataclass(frozen=True)
class Fact:
    """One number of a catalogue, in the form that a table shows."""

    quantity: str
    """Such as `budget_mb` or `macs_per_s.8`."""
    value: str
    unit: str
    """Empty for bit depths and windows."""
    source: str
    """Where it comes from, or `assumed: ` and the reason."""


@dataclass(frozen=True)
class DeviceClass:
    """A class of a catalogue: its typical device, the spread of its windows, and all sources."""

    profile: DeviceProfile
    shift_h: float
    """A device's windows are up to this many hours earlier or later: habits, time zones."""
    facts: tuple[Fact, ...]


def load_catalogue(path: Path | None = None) -> dict[str, DeviceClass]:
    """Return name -> device class: the built-in ones, overridden by those of the file at `path`.

    For a built-in class the file needs only the keys that differ; a new class needs all of them.

    Raises:
        FedsimError: `file:line: class.key: ` and what is wrong: the file is not a catalogue, a key
            is unknown or missing, a number is out of range or has neither source nor assumed, or a
            bit depth is outside 2..16. Also if a supported bit depth, or 32, has no speed.
    """
    classes = dict(_built_in())
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
                raise FedsimError(f"{profile.device}.{key}: no number for {what}: add one")


def check_depths(depths: Iterable[Any]) -> tuple[int, ...]:
    """Return bit depths in order; raise `FedsimError` unless each is in 2..16 and given once."""
    depths = list(depths)
    for bits in depths:
        if type(bits) is not int or bits not in DEPTHS:
            raise FedsimError(f"{bits!r} is not a bit depth: use whole numbers from 2 to 16")
        if depths.count(bits) > 1:
            raise FedsimError(f"{bits} bits are listed twice: remove one")
    if not depths:
        raise FedsimError("the list is empty: name at least one bit depth from 2 to 16")
    return tuple(sorted(depths))


def check_number(value: Any, *, may_be_zero: bool = False) -> float:
    """Return `value` as a float; raise `FedsimError` unless it is finite and above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FedsimError(f"{value!r} is not a finite number: write one")
    if value < 0 or (value == 0 and not may_be_zero):
        allowed = "of at least zero" if may_be_zero else "above zero"
        raise FedsimError(f"{value!r} is out of range: use a number {allowed}")
    return float(value)


@cache
def _built_in() -> Mapping[str, tuple[str, dict[str, Node]]]:
    return _read(BUILT_IN)


def _read(path: Path) -> dict[str, tuple[str, dict[str, Node]]]:
    """Return class -> (its location in the file, its keys)."""
    try:
        root = compose(read_text(path, MAX_BYTES), str(path))
    except Problem as error:
        raise FedsimError(str(error)) from None
    if not isinstance(root, MappingNode):
        raise FedsimError(f"{path}: not a device catalogue: write a mapping from class to numbers")
    classes = {}
    for name, keys in root.value:
        where = place(name)[0]
        if not isinstance(keys, MappingNode):
            raise FedsimError(
                f"{where}: {name.value}: not a device class: write a mapping of numbers"
            )
        classes[name.value] = (where, {key.value: value for key, value in keys.value})
        for key, _ in keys.value:
            if key.value not in _KEYS:
                raise FedsimError(
                    f"{place(key)[0]}: {name.value}.{key.value}: unknown key: "
                    f"{nearest(key.value, _KEYS)}"
                )
    return classes


def _device_class(name: str, where: str, keys: Mapping[str, Node]) -> DeviceClass:
    if name == FLEET:
        raise FedsimError(f"{where}: {FLEET!r} stands for all classes in tables: rename this class")
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
    """Return the value of a key, and add it to `facts`."""
    raw = plain(node)
    zero = key in _MAY_BE_ZERO
    if key in _BY_DEPTH and not (isinstance(raw, dict) and "value" in raw):
        return _by_depth(key, raw, facts)
    value, source = _sourced(raw)
    if key == "bit_depths":
        if not isinstance(value, list):
            raise FedsimError(f"{value!r} is not a list of bit depths: write one such as [4, 8]")
        value = check_depths(value)
        facts.append(Fact(key, " ".join(map(str, value)), "", source))
    elif key == "available":
        value = read_hours(str(value))
        facts.append(Fact(key, write_hours(value), "", source))
    elif key == "battery_j" and value is None:
        facts.append(Fact(key, "mains", "", source))
    elif key == "macs_per_s":
        raise FedsimError("one number is given: give one for each bit depth and for 32")
    else:
        value = check_number(value, may_be_zero=zero)
        unit = _UNITS.get(key) or _BY_DEPTH[key]
        facts.append(Fact(key, f"{value:.4g}", unit, source))
    return value


def _by_depth(key: str, raw: Any, facts: list[Fact]) -> dict[int, float]:
    if not isinstance(raw, dict) or not raw:
        raise FedsimError("not a mapping: write one from bit depth, such as 8 or 2-8, to number")
    found: dict[int, float] = {}
    for depths, entry in raw.items():
        match = _RANGE.fullmatch(depths)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        inside = first == last == FULL or (first in DEPTHS and last in DEPTHS and first <= last)
        if not inside:
            raise FedsimError(
                f"{depths!r} is not a bit depth: use one from 2 to 16, a range such as 2-8, or 32"
            )
        try:
            value, source = _sourced(entry)
            value = check_number(value, may_be_zero=key in _MAY_BE_ZERO)
        except FedsimError as error:
            raise FedsimError(f"{depths}: {error}") from None
        for bits in range(first, last + 1):
            if bits in found:
                raise FedsimError(f"{bits} bits are given twice: remove one")
            found[bits] = value
        facts.append(Fact(f"{key}.{depths}", f"{value:.4g}", _BY_DEPTH[key], source))
    return found


def _sourced(raw: Any) -> tuple[Any, str]:
    """Return a number's value, and where it comes from."""
    if not isinstance(raw, dict) or "value" not in raw:
        raise FedsimError(
            f"{raw!r} has no source: write {{value: ..., source: ...}} or {{value: ..., assumed: "
            f"why}}"
        )
    for key in raw:
        if key not in ("value", "source", "assumed"):
            hint = nearest(key, ("value", "source", "assumed"))
            raise FedsimError(f"unknown key {key!r} of a number: {hint}")
    sources = [(key, raw[key]) for key in ("source", "assumed") if key in raw]
    if len(sources) != 1 or not isinstance(sources[0][1], str) or not sources[0][1].strip():
        raise FedsimError("the number has no source: add either source, or assumed and a reason")
    key, text = sources[0]
    return raw["value"], text if key == "source" else f"assumed: {text}"


def scale(profile: DeviceProfile, speed: float = 1, link: float = 1) -> DeviceProfile:
    """Return a device that is `speed` times as fast, with links that are `link` times as fast."""
    return replace(
        profile,
        macs_per_s={bits: rate * speed for bits, rate in profile.macs_per_s.items()},
        down_mbit=profile.down_mbit * link,
        up_mbit=profile.up_mbit * link,
    )


def vary(profile: DeviceProfile, values: Mapping[str, Any]) -> DeviceProfile:
    """Return the device with these sizes and bit depths, scaled by the factors in `values`."""
    own = {k: values[k] for k in ("budget_mb", "memory_mb", "bit_depths") if k in values}
    if profile.battery_j is not None and "battery" in values:
        own["battery_j"] = profile.battery_j * values["battery"]
    varied = scale(replace(profile, **own), values.get("speed", 1), values.get("link", 1))
    check_profile(varied)
    return varied
