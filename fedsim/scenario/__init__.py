"""Scenarios: one YAML file describes a study; here it becomes a checked, frozen `Scenario`."""

from fedsim.scenario.clients import Devices, check_sources
from fedsim.scenario.find import find_scenario, list_scenarios
from fedsim.scenario.load import dump_scenario, load_scenario
from fedsim.scenario.schema import (
    ClientSettings,
    CorpusSettings,
    EngineChoice,
    MethodSettings,
    ModelSettings,
    QuantizationSettings,
    Scenario,
    json_schema,
    scenario_from_json,
)

__all__ = [
    "ClientSettings",
    "CorpusSettings",
    "Devices",
    "EngineChoice",
    "MethodSettings",
    "ModelSettings",
    "QuantizationSettings",
    "Scenario",
    "check_sources",
    "dump_scenario",
    "find_scenario",
    "json_schema",
    "list_scenarios",
    "load_scenario",
    "scenario_from_json",
]
