"""Refuses requests that go beyond the device's own scenario."""

from __future__ import annotations

from fedsim.errors import FedsimError
from fedsim.privacy.secure_aggregation import wire
from fedsim.protocol import messages as m
from fedsim.scenario.cells import measure_of
from fedsim.scenario.methods import OWN
from fedsim.scenario.schema import Scenario
from fedsim.scenario.scores import AUTO


def check_request(scenario: Scenario, client: str, request: m.Message) -> None:
    """Raise `FedsimError`, which names the client, for a request that goes beyond the scenario."""
    excess = _excess(scenario, request)
    if excess:
        raise FedsimError(
            f"client {client!r} refuses a request for {excess}; give both sides the same scenario"
        )


def _excess(scenario: Scenario, request: m.Message) -> str:
    """Return what a request asks for and the scenario does not grant, or ""."""
    allowed, rounds = ("", measure_of(scenario)), scenario.privacy.rounds
    foreign = any(set(method.tuned_on) - {OWN} for method in scenario.methods)
    match request:
        case m.SenseRequest(round=number) if not 1 <= number <= rounds:
            return f"round {number}: its scenario has rounds 1 to {rounds}"
        case m.SenseRequest(quantiles=True) if not scenario.study:
            return "quantiles: its scenario does not set study: true"
        case m.Evaluation(clip_counts=True) if not scenario.study:
            return "counts of each clip: its scenario does not set study: true"
        case m.Evaluation(metric=metric) if metric not in _metrics(scenario):
            return f"the metric {metric!r:.40}: its scenario has {scenario.metric!r}"
        case m.Evaluation(text_normalizer=name) if name != scenario.text_normalizer:
            own = scenario.text_normalizer
            return f"texts normalized by {name!r:.40}: its scenario has {own!r}"
        case m.Evaluation(rare_beyond=number) if number not in (0, scenario.rare_beyond):
            granted = scenario.rare_beyond
            return f"words beyond the {number:,} most frequent: its scenario has {granted}"
        case m.SenseRequest(workload=True) | m.Evaluation(workload=True) if not scenario.fleet:
            return "its workload: its scenario has no fleet"
        case m.SenseRequest(measure=measure) | wire.Post(measure=measure) if measure not in allowed:
            return f"the measure {measure!r:.40}: its scenario has {allowed[1]!r}"
        case m.Delivery(return_models=True) if not foreign:
            return "its models: no method of its scenario uses another client's clips"
    return ""


def _metrics(scenario: Scenario) -> tuple[str, ...]:
    """Return what may be requested: under `auto`, the server chooses."""
    return ("wer", "cer") if scenario.metric == AUTO else (scenario.metric,)
