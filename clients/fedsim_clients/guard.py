"""What a server may ask of a device: no more than the device's own scenario says."""

from __future__ import annotations

from fedsim.errors import FedsimError
from fedsim.privacy.secure_aggregation import wire
from fedsim.protocol import messages as m
from fedsim.scenario.methods import OWN
from fedsim.scenario.schema import Scenario


def check_request(scenario: Scenario, client: str, request: m.Message) -> None:
    """Raise `FedsimError`, which names the client, for a request that goes beyond the scenario."""
    wish = _beyond(scenario, request)
    if wish:
        raise FedsimError(
            f"client {client!r} refuses: it was asked for {wish}; give both sides the same scenario"
        )


def _beyond(scenario: Scenario, request: m.Message) -> str:
    """Return what a request asks for that the scenario does not grant, or nothing."""
    allowed, rounds = ("", scenario.quantization.sensitivity), scenario.privacy.rounds
    foreign = any(set(method.tuned_on) - {OWN} for method in scenario.methods)
    match request:
        case m.SenseRequest(round=number) if not 1 <= number <= rounds:
            return f"round {number}, and its scenario has rounds 1 to {rounds}"
        case m.SenseRequest(quantiles=True) if not scenario.study:
            return "quantiles, and its scenario does not say study: true"
        case m.Evaluation(clip_counts=True) if not scenario.study:
            return "counts of each clip, and its scenario does not say study: true"
        case m.SenseRequest(workload=True) | m.Evaluation(workload=True) if not scenario.fleet:
            return "its workload, and its scenario has no fleet"
        case m.SenseRequest(measure=measure) | wire.Post(measure=measure) if measure not in allowed:
            return f"the measure {measure!r:.40}, and its scenario says {allowed[1]!r}"
        case m.Delivery(return_ranges=True) if not foreign:
            return "activation ranges, and no method of its scenario uses another client's clips"
    return ""
