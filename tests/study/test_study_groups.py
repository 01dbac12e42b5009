"""How many clients share passes: by hand."""

from __future__ import annotations

import pytest

from fedsim.quant.observe import ROWS
from fedsim.quant.sensitivity import CAPACITY
from fedsim.scenario import load_scenario
from fedsim.study.groups import clients_per_batch, clients_within, kept_bytes, statistics_bytes


@pytest.fixture
def scenario(study):
    return lambda *settings: load_scenario(study.file, list(settings))


def test_on_the_processor_clients_are_alone_unless_the_scenario_says_otherwise(scenario, speech):
    model = speech("ctc-group")
    assert clients_per_batch(scenario(), model) == 1
    assert clients_per_batch(scenario("engine.clients_per_batch=12"), model) == 12


@pytest.mark.parametrize(
    ("memory", "each", "clients"),
    [(16 << 30, 64 << 20, 32), (16 << 30, 400 << 20, 8), (16 << 30, 8 << 30, 1), (1, 2, 1)],
)
def test_a_power_of_two_within_a_quarter_of_the_memory(memory, each, clients):
    assert clients_within(memory, each) == clients


def test_bytes_of_statistics(study, speech):
    """Samples of all layers; rows of inputs for cosine; second moments for a device that rounds."""
    model = speech("ctc-layer")
    methods = {
        "none": "[{allocation: myqasr, calibration: dynamic, rounding: nearest}]",
        "rows": "[{allocation: myqasr, calibration: cosine, rounding: nearest}]",
        "both": "[{allocation: myqasr, calibration: cosine, rounding: compensated, moments: own}]",
    }
    made = {k: load_scenario(study.file, [f"methods={text}"]) for k, text in methods.items()}
    modules = dict(model.module.named_modules())
    inputs = [
        (getattr(modules[layer.name], "groups", 1), layer.n_weights // layer.shape[0])
        for layer in model.layers
    ]
    rows = 4 * ROWS * sum(groups * k for groups, k in inputs)
    moments = 4 * sum(groups * k * k for groups, k in inputs)
    found = {name: kept_bytes(one, model) for name, one in made.items()}
    assert found == {"none": 0, "rows": rows, "both": rows + moments}
    samples = 4 * len(model.layers) * CAPACITY
    assert statistics_bytes(model) == samples + rows + moments
