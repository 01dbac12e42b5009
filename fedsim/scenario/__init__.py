"""Scenarios: a YAML file that describes a study is read into a checked, frozen `Scenario`."""

from fedsim.scenario.clients import ClientSettings
from fedsim.scenario.corpus import CorpusSettings
from fedsim.scenario.find import find_scenario, list_scenarios
from fedsim.scenario.load import load_scenario
from fedsim.scenario.methods import MethodSettings
from fedsim.scenario.schema import (
    EngineChoice,
    ModelSettings,
    QuantizationSettings,
    Scenario,
    json_schema,
    scenario_from_json,
)

__all__ = [
    "ClientSettings",
    "CorpusSettings",
    "EngineChoice",
    "MethodSettings",
    "ModelSettings",
    "QuantizationSettings",
    "Scenario",
    "find_scenario",
    "json_schema",
    "list_scenarios",
    "load_scenario",
    "scenario_from_json",
]
