"""Devices from a table with one row per device: measured ones, or those of another study.

The table is a CSV or Parquet file with a header. A row's `device` names the class that supplies the
values that the row leaves empty; a row without a class gives every value.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fedsim.base.files import read_text, require_regular
from fedsim.base.text import composed
from fedsim.errors import FedsimError, nearest
from fedsim.fleet.devices import (
    DEPTHS,
    FULL,
    DeviceClass,
    DeviceProfile,
    check_depths,
    check_number,
    scale,
    vary,
)
from fedsim.fleet.windows import read_hours

MAX_BYTES = 2**28
"""Largest trace in CSV that is read."""


@dataclass(frozen=True)
class Trace:
    """A table of devices; `clients` are their keys, or empty where it has no such column."""

    path: str
    clients: tuple[str, ...]
    profiles: tuple[DeviceProfile, ...]


def read_trace(path: Path, catalogue: Mapping[str, DeviceClass]) -> Trace:
    """Return the devices of a CSV or Parquet file.

    Columns are among `client`, `device`, the fields of `DeviceProfile` and the factors `speed`,
    `link` and `battery`. `bit_depths` is as `4 8`; `available` as `22-7 12-13` or `always`;
    `macs_per_s` and `joules_per_gmac` as `8:4e9 32:1e9`; one number is the speed in full precision,
    to which the class's speeds are scaled, or the energy at every depth. An empty cell leaves the
    value to the class.

    Raises:
        FedsimError: `file:line: column: ` and what is wrong with a cell; also if the file cannot
            be read, has no row or an unknown column, lists a client twice, or has a row that
            neither names a class nor gives every value.
    """
    rows = list((_parquet if path.suffix == ".parquet" else _csv)(path))
    if not rows:
        raise FedsimError(f"trace {path} has no rows: add one for each device")
    names = list(rows[0][1])
    for name in names:
        if name not in _CELLS:
            raise FedsimError(f"trace {path}: unknown column {name!r}: {nearest(name, _CELLS)}")
    clients: dict[str, None] = {}
    profiles = []
    for line, cells in rows:
        where = f"{path}:{line}"
        values = dict(_values(cells, where))
        if "client" in names:
            client = values.pop("client", None)
            if client is None:
                raise FedsimError(f"{where}: client: the cell is empty: name the client")
            if client in clients:
                raise FedsimError(f"{where}: client {client!r} is listed twice: remove one")
            clients[client] = None
        profiles.append(_profile(values, catalogue, where))
    return Trace(str(path), tuple(clients), tuple(profiles))


def deal(trace: Trace, keys: Sequence[str]) -> dict[str, DeviceProfile]:
    """Return client key -> its device: by key, or else rows dealt round to `keys` in order.

    Raises:
        FedsimError: if the trace lists clients, and not one of `keys`.
    """
    if not trace.clients:
        return {key: trace.profiles[i % len(trace.profiles)] for i, key in enumerate(keys)}
    listed = dict(zip(trace.clients, trace.profiles, strict=True))
    for key in keys:
        if key not in listed:
            hint = nearest(key, listed)
            raise FedsimError(f"trace {trace.path} has no row for client {key!r}: {hint}")
    return {key: listed[key] for key in keys}


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(read_text(path, MAX_BYTES), newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise FedsimError(
                    f"{path}:{reader.line_num}: the row does not have the"
                    f" {len(reader.fieldnames or ())} cells of the header: add or remove commas"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise FedsimError(f"{path} cannot be read as CSV ({error}): check the file") from error


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        require_regular(path)
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise FedsimError(f"{path} cannot be read as Parquet ({error}): check the file") from error
    yield from enumerate(table.to_pylist(), start=1)


def _values(cells: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    for name, cell in cells.items():
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            continue
        try:
            yield name, _CELLS[name](cell)
        except FedsimError as error:
            raise FedsimError(f"{where}: {name}: {error}") from None


def _profile(
    values: dict[str, Any], catalogue: Mapping[str, DeviceClass], where: str
) -> DeviceProfile:
    names = [field.name for field in fields(DeviceProfile)]
    given = {name: values[name] for name in names if name in values}
    if given.get("device") in catalogue:
        typical = catalogue[given["device"]].profile
        if isinstance(given.get("macs_per_s"), float):
            speed = given["macs_per_s"] / typical.macs_per_s[FULL]
            given["macs_per_s"] = scale(typical, speed=speed).macs_per_s
        given = {**{name: getattr(typical, name) for name in names}, **given}
    else:
        _check_complete(given, catalogue, where)
        given.setdefault("device", "-")
    if isinstance(given["joules_per_gmac"], float):
        given["joules_per_gmac"] = dict.fromkeys(given["macs_per_s"], given["joules_per_gmac"])
    profile = DeviceProfile(**given)
    try:
        return vary(profile, {k: values[k] for k in ("speed", "link", "battery") if k in values})
    except FedsimError as error:
        raise FedsimError(f"{where}: {error}") from None


def _check_complete(
    given: Mapping[str, Any], catalogue: Mapping[str, DeviceClass], where: str
) -> None:
    """Raise `FedsimError` for a row that names no known class and does not give every value."""
    names = [field.name for field in fields(DeviceProfile)]
    missing = [name for name in names if name not in given and name != "device"]
    if missing and "device" in given:
        hint = nearest(given["device"], catalogue)
        raise FedsimError(f"{where}: device: there is no class {given['device']!r}: {hint}")
    if missing:
        raise FedsimError(f"{where}: {missing[0]} is empty: fill it in, or name a device class")
    if isinstance(given["macs_per_s"], float):
        raise FedsimError(
            f"{where}: macs_per_s: one number scales the speeds of a device class: name one, or"
            f" give a speed for each bit depth, such as 8:4e9 32:1e9"
        )


def _text(cell: Any) -> str:
    return str(cell).strip()


def _positive(cell: Any) -> float:
    return check_number(_parsed(cell))


def _not_negative(cell: Any) -> float:
    return check_number(_parsed(cell), may_be_zero=True)


def _parsed(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    try:
        return float(cell)
    except ValueError:
        return cell


def _battery(cell: Any) -> float | None:
    return None if _text(cell) == "mains" else _positive(cell)


def _bit_depths(cell: Any) -> tuple[int, ...]:
    parts = cell.split() if isinstance(cell, str) else cell
    if not isinstance(parts, list):
        parts = [parts]
    return check_depths(
        int(part)
        if isinstance(part, str) and part.isascii() and part.isdigit() and len(part) < 4
        else part
        for part in parts
    )


def _by_depth(cell: Any) -> float | dict[int, float]:
    """Return bit depth -> number for a cell such as `8:4e9 32:1e9`, else its one number."""
    if not isinstance(cell, str) or ":" not in cell:
        return _positive(cell)
    found: dict[int, float] = {}
    for part in cell.split():
        depth, _, number = part.partition(":")
        bits = int(depth) if depth.isascii() and depth.isdigit() and len(depth) < 4 else 0
        if bits not in DEPTHS and bits != FULL:
            raise FedsimError(
                f"{part!r}: {depth!r} is not a bit depth: use one from 2 to 16, or 32"
            )
        if bits in found:
            raise FedsimError(f"{bits} bits are given twice: remove one")
        found[bits] = _positive(number)
    return found


_CELLS: dict[str, Callable[[Any], Any]] = {
    "client": lambda cell: composed(_text(cell)),
    "device": _text,
    "budget_mb": _positive,
    "memory_mb": _positive,
    "bit_depths": _bit_depths,
    "macs_per_s": _by_depth,
    "joules_per_gmac": _by_depth,
    "read_mb_s": _positive,
    "down_mbit": _positive,
    "up_mbit": _positive,
    "latency_s": _not_negative,
    "battery_j": _battery,
    "joules_per_mb": _not_negative,
    "available": lambda cell: read_hours(_text(cell)),
    "speed": _positive,
    "link": _positive,
    "battery": _positive,
}
"""Column -> the function that reads one of its cells."""
