from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fleet_toys import DEVICE

from fedsim.errors import FedsimError
from fedsim.fleet import DeviceClass, FleetSettings, open_fleet
from fedsim.fleet.trace import read_trace

CATALOGUE = {"toy": DeviceClass(DEVICE, 2.0, ())}


def write(folder: Path, text: str) -> Path:
    path = folder / "fleet.csv"
    path.write_text(text, encoding="utf-8")
    return path


def dealt(path: Path, keys):
    settings = FleetSettings(trace=str(path))
    return open_fleet(settings, CATALOGUE, 0, keys)


def test_rows_by_client(tmp_path):
    path = write(
        tmp_path,
        "client,device,budget_mb,bit_depths,speed,battery_j,available\n"
        "b,toy,2.5,8,3,,22-7 12-13\n"
        "a,toy,,8 4,,70,\n"
        "unused,toy,,,,mains,always\n",
    )
    found = dealt(path, ["b", "a"])
    assert list(found) == ["a", "b"]
    assert found["b"].budget_mb == 2.5
    assert found["b"].bit_depths == (8,)
    assert found["b"].macs_per_s == {4: 600, 8: 300, 32: 30}
    assert found["b"].battery_j is None
    assert found["b"].available == ((12, 1), (22, 9))
    # The class supplies what a row leaves empty; the windows of a trace are not spread.
    assert found["a"].budget_mb == DEVICE.budget_mb
    assert found["a"].bit_depths == (4, 8)
    assert found["a"].battery_j == 70
    assert found["a"].available == DEVICE.available
    with pytest.raises(FedsimError, match="no row for client 'unusd': did you mean 'unused'"):
        dealt(path, ["a", "unusd"])


def test_rows_without_clients_are_dealt_round(tmp_path):
    path = write(tmp_path, "device,budget_mb\ntoy,1\ntoy,2\n")
    found = dealt(path, ["z", "x", "y"])
    assert {key: p.budget_mb for key, p in found.items()} == {"x": 1, "y": 2, "z": 1}


def test_speeds_and_energies(tmp_path):
    path = write(
        tmp_path,
        "device,macs_per_s,joules_per_gmac,link\n"
        "toy,20,,2\n"  # full precision twice as fast, so is all
        "toy,4:5 8:6 32:7,0.5,\n"
        "toy,,4:1 8:2 32:3,\n",
    )
    first, second, third = read_trace(path, CATALOGUE).profiles
    assert first.macs_per_s == {4: 400, 8: 200, 32: 20}
    assert (first.down_mbit, first.up_mbit) == (2 * DEVICE.down_mbit, 2 * DEVICE.up_mbit)
    assert second.macs_per_s == {4: 5, 8: 6, 32: 7}
    assert second.joules_per_gmac == {4: 0.5, 8: 0.5, 32: 0.5}
    assert third.joules_per_gmac == {4: 1, 8: 2, 32: 3}
    assert third.macs_per_s == DEVICE.macs_per_s


EVERYTHING = {
    "budget_mb": "1",
    "memory_mb": "2",
    "bit_depths": "8",
    "macs_per_s": "8:4e9 32:1e9",
    "joules_per_gmac": "0.5",
    "read_mb_s": "3",
    "down_mbit": "4",
    "up_mbit": "5",
    "latency_s": "0",
    "battery_j": "mains",
    "joules_per_mb": "6",
    "available": "always",
}


def table(columns: dict[str, str]) -> str:
    return ",".join(columns) + "\n" + ",".join(columns.values()) + "\n"


def test_a_row_with_every_value_needs_no_class(tmp_path):
    (profile,) = read_trace(write(tmp_path, table(EVERYTHING)), {}).profiles
    assert profile.device == "-"
    assert profile.macs_per_s == {8: 4e9, 32: 1e9}
    assert (profile.up_mbit, profile.battery_j) == (5, None)
    named = {"device": "prototype", **EVERYTHING}
    (profile,) = read_trace(write(tmp_path, table(named)), CATALOGUE).profiles
    assert profile.device == "prototype"
    for column in EVERYTHING:
        rest = {name: value for name, value in EVERYTHING.items() if name != column}
        with pytest.raises(FedsimError, match=rf"fleet.csv:2: {column} is empty: fill it in"):
            read_trace(write(tmp_path, table(rest)), CATALOGUE)
    with pytest.raises(FedsimError, match=r"fleet.csv:2: macs_per_s: .*a device class: name one"):
        read_trace(write(tmp_path, table({**EVERYTHING, "macs_per_s": "5"})), CATALOGUE)


def test_parquet(tmp_path):
    path = tmp_path / "fleet.parquet"
    rows = {
        "client": ["a", "b"],
        "device": ["toy", "toy"],
        "budget_mb": [1.5, None],
        "battery_j": [10, 20],
        "bit_depths": [[8, 4], [8]],
    }
    pq.write_table(pa.table(rows), path)
    found = dealt(path, ["a", "b"])
    assert [found[key].budget_mb for key in "ab"] == [1.5, DEVICE.budget_mb]
    assert [found[key].battery_j for key in "ab"] == [10, 20]
    assert [found[key].bit_depths for key in "ab"] == [(4, 8), (8,)]
    pq.write_table(pa.table({"device": ["toy"], "up_mbit": [float("nan")]}), path)
    with pytest.raises(FedsimError, match=r"fleet.parquet:1: up_mbit: nan .*: write one"):
        dealt(path, ["a"])
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(FedsimError, match=r"cannot be read as Parquet .*check the file"):
        dealt(path, ["a"])


MISTAKES = [
    # The table, and the line, the column and the remedy in the error.
    ("device,budget_mb\n", "fleet.csv .*: add one for each device"),
    ("device,budgets\ntoy,1\n", "'budgets': did you mean 'budget_mb'"),
    ("device,budget_mb\ntoy,1\ntoy,x\n", "fleet.csv:3: budget_mb: 'x' .*: write one"),
    ("device,budget_mb\ntoy,-1\n", "fleet.csv:2: budget_mb: -1.0 .* above zero"),
    ("device,battery_j\ntoy,0\n", "battery_j: 0.0 .* above zero"),
    ("device,latency_s\ntoy,-1\n", "latency_s: -1.0 .* at least zero"),
    ("device,bit_depths\ntoy,4 x\n", "fleet.csv:2: bit_depths: 'x' .* from 2 to 16"),
    ("device,bit_depths\ntoy,5\n", "fleet.csv:2: toy.macs_per_s: .* 5 bits: add one"),
    ("device,macs_per_s\ntoy,1:5\n", "macs_per_s: '1:5': '1' .* from 2 to 16"),
    ("device,macs_per_s\ntoy,8:5 8:6\n", "macs_per_s: 8 bits are given twice: remove one"),
    ("device,macs_per_s\ntoy,8:5\n", "fleet.csv:2: toy.macs_per_s: .* 4 bits: add one"),
    ("device,available\ntoy,22\n", "available: '22' .* such as 22-7"),
    ("device,budget_mb\ntoys,1\n", "fleet.csv:2: device: .*'toys': did you mean 'toy'"),
    ("budget_mb\n1\n", "fleet.csv:2: memory_mb is empty: fill it in"),
    ("client,device\na,toy\na,toy\n", "fleet.csv:3: client 'a' is listed twice: remove one"),
    ("client,device\n,toy\n", "fleet.csv:2: client: .*: name the client"),
    ("device,budget_mb\ntoy\n", "fleet.csv:2: .* 2 cells .*: add or remove commas"),
    ("device,budget_mb\ntoy,1,2\n", "fleet.csv:2: .* 2 cells .*: add or remove commas"),
]


def test_a_mistake_in_a_trace_is_located(tmp_path):
    for text, message in MISTAKES:
        with pytest.raises(FedsimError, match=message):
            read_trace(write(tmp_path, text), CATALOGUE)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(FedsimError, match=r"none.csv: the file does not exist: check the path"):
        read_trace(tmp_path / "none.csv", CATALOGUE)
    path = tmp_path / "fleet.csv"
    path.write_bytes(b"device\n\xff\n")
    with pytest.raises(FedsimError, match=r"fleet.csv:2: the file is not UTF-8 text: save it"):
        read_trace(path, CATALOGUE)
