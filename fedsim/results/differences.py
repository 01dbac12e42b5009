"""What tells runs apart: their names, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.scenario.schema import Scenario

MAX_DIFFERENCES = 3
"""Settings that tell runs apart; more do not fit beside every number."""
_WITHOUT_EFFECT = ("name", "description", "engine", "save_models", "matrix")  # on any result


def run_names(runs: Sequence[tuple[Path, Scenario]]) -> list[str]:
    """Return distinct names of runs: of their scenarios, else with their folders', else paths."""
    for names in (
        [scenario.name for _, scenario in runs],
        [f"{scenario.name} {path.resolve().name}" for path, scenario in runs],
    ):
        if len(set(names)) == len(names):
            return names
    return [str(path) for path, _ in runs]


def distinguishing_settings(scenarios: Sequence[Scenario]) -> list[dict[str, Any]]:
    """Return, for each run, the settings in which the runs differ and that affect results.

    Empty if there are more than `MAX_DIFFERENCES`.
    """
    keys = [k for k in differences(scenarios) if k.split(".")[0] not in _WITHOUT_EFFECT]
    if len(keys) > MAX_DIFFERENCES:
        keys = []
    return [{key: flat(scenario).get(key) for key in keys} for scenario in scenarios]


def differences(scenarios: Sequence[Scenario]) -> dict[str, list[Any]]:
    """Return the settings in which scenarios differ: dotted key -> the value in each scenario."""
    flat_scenarios = [flat(scenario) for scenario in scenarios]
    keys = dict.fromkeys(key for settings in flat_scenarios for key in settings)
    values = {key: [settings.get(key) for settings in flat_scenarios] for key in keys}
    return {k: v for k, v in values.items() if any(x != v[0] for x in v)}


def flat(scenario: Scenario) -> dict[str, Any]:
    """Return a scenario's settings by dotted key; lists are values."""

    def walk(data: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in data.items():
            if isinstance(value, dict) and value and prefix + key != "matrix":
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(walk(scenario.model_dump(mode="json"), ""))
