"""How many clients share forward passes: as the scenario says, or as a GPU's memory allows."""

from __future__ import annotations

import torch

from fedsim.quant.calibrators import needs, on_user_data
from fedsim.quant.footprint import moment_bytes
from fedsim.quant.model import Quantizable, device_of
from fedsim.quant.moments import moment_shapes
from fedsim.quant.observe import ROWS
from fedsim.quant.sensitivity import CAPACITY
from fedsim.scenario.cells import all_cells
from fedsim.scenario.engine import MAX_GROUP
from fedsim.scenario.schema import Scenario

SHARE = 4
"""The statistics of all clients of a pass take at most one part in so many of a worker's memory."""
_BYTES = 4  # of a float32


def clients_per_batch(scenario: Scenario, model: Quantizable) -> int:
    """Return how many neighbouring clients share forward passes.

    Where the scenario does not say it: 1, unless the model is on a CUDA GPU; there a power of two,
    by the memory that a worker may take in all, so that it does not depend on what is free.
    """
    engine, device = scenario.engine, device_of(model)
    if engine.clients_per_batch is not None:
        return engine.clients_per_batch
    if device.type != "cuda":
        return 1
    memory = torch.cuda.get_device_properties(device).total_memory
    if engine.workers_per_gpu > 1:
        memory //= engine.workers_per_gpu + 1  # one part is the server's
    return clients_within(memory, statistics_bytes(model))


def clients_within(memory: int, each: int) -> int:
    """Return how many clients whose statistics take `each` bytes share passes in `memory` bytes: a
    power of two, at most `MAX_GROUP`, and 1 if not even one fits."""
    fitting = memory // SHARE // each
    return min(MAX_GROUP, 1 << max(0, fitting.bit_length() - 1))


def statistics_bytes(model: Quantizable) -> int:
    """Return the bytes of one client's statistics during a pass, at most: samples of the layers'
    outputs, rows of their inputs and second moments.

    Whatever the methods of a scenario need of them: a method's results must not depend on the
    methods beside it.
    """
    samples = len(model.layers) * CAPACITY * _BYTES
    return samples + _rows_bytes(model) + moment_bytes(moment_shapes(model))


def kept_bytes(scenario: Scenario, model: Quantizable) -> int:
    """Return those that stay until the client has been personalized, which a scenario's methods
    need."""
    calibrations = {c for method in scenario.methods for c in method.calibration}
    rows = needs(on_user_data(calibrations)).rows
    rounds = any(cell.rounded_by_device for cell in all_cells(scenario))
    moments = moment_bytes(moment_shapes(model)) if rounds else 0
    return moments + (_rows_bytes(model) if rows else 0)


def _rows_bytes(model: Quantizable) -> int:
    shapes = moment_shapes(model).values()
    return _BYTES * sum(ROWS * groups * inputs for groups, inputs, _ in shapes)
