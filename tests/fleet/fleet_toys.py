"""What the tests of `fedsim.fleet` share: a device with round numbers, and a client's work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import settings
from properties import examples

from fedsim.fleet import ClientWork, DeviceProfile, StageWork
from fedsim.fleet.windows import ALWAYS

thorough = settings(max_examples=examples(50), deadline=None, derandomize=True, database=None)
"""Hypothesis: the same examples in every run."""

HOUR = 3600.0
DEVICE = DeviceProfile(
    device="toy",
    budget_mb=4.0,
    memory_mb=64.0,
    bit_depths=(4, 8),
    macs_per_s={4: 200.0, 8: 100.0, 32: 10.0},
    joules_per_gmac={4: 0.5e9, 8: 1e9, 32: 10e9},  # 0.5, 1 and 10 J a MAC
    read_mb_s=1.0,
    down_mbit=8e-6,  # a byte a second
    up_mbit=8e-6,
    latency_s=0.0,
    battery_j=None,
    joules_per_mb=2.0**20,  # a joule a byte
    available=ALWAYS,
)


def device(**changes: Any) -> DeviceProfile:
    return replace(DEVICE, **changes)


def work(
    client: str = "a",
    profile: DeviceProfile = DEVICE,
    sense: StageWork | None = None,
    personalize: StageWork | None = None,
    evaluate: StageWork | None = None,
    held: frozenset[str] = frozenset(),
) -> ClientWork:
    """Return a client's work; a stage that is not given takes no time."""
    stages = [stage or StageWork() for stage in (sense, personalize, evaluate)]
    return ClientWork(client, profile, *stages, held=held)


CLASS = """\
{name}:
  budget_mb: {{value: 4, source: "a shop"}}
  memory_mb: {{value: 64, assumed: "a guess"}}
  bit_depths: {{value: [4, 8], source: "its manual"}}
  macs_per_s:
    4-8: {{value: 2e9, source: "measured"}}
    32: {{value: 1e9, source: "measured"}}
  joules_per_gmac: {{value: 0.5, assumed: "a guess"}}
  read_mb_s: {{value: 100, assumed: "a guess"}}
  down_mbit: {{value: 10, assumed: "a guess"}}
  up_mbit: {{value: 5, assumed: "a guess"}}
  latency_s: {{value: 0, assumed: "a guess"}}
  battery_j: {{value: null, assumed: "plugged in"}}
  joules_per_mb: {{value: 1, assumed: "a guess"}}
  available: {{value: 22-7, assumed: "a guess"}}
  shift_h: {{value: 0, assumed: "a guess"}}
"""
"""A device class of a user's catalogue."""


def write_class(folder: Path, name: str = "radio", old: str = "", new: str = "") -> Path:
    """Write a catalogue of one class, `old` in its text replaced by `new`."""
    text = CLASS.format(name=name)
    assert old in text
    path = folder / "mine.yaml"
    path.write_text(text.replace(old, new) if old else text, encoding="utf-8")
    return path
