"""What a scenario asks for: which models of each client, tuned on whose clips, in which stages.

Cheap to import: a run shows its stages before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.errors import FedsimError, nearest
from fedsim.quant.runtimes import EMULATED
from fedsim.scenario.methods import EACH, FULL_PRECISION, NOBODY, OTHER, OWN, MethodSettings
from fedsim.scenario.quantization import QuantizationSettings
from fedsim.scenario.schema import Scenario

LOSSES = "loss"  # fedsim.quant.losses.MEASURE, which needs torch
"""The measure that a device is asked for where it makes a table of losses of its own clips."""

_NOT_EMULATED = "float"
"""The calibration of a model whose inputs another runtime quantizes: none."""


@dataclass(frozen=True)
class Cell:
    """One way to make a model, on anybody's clips.

    `draw` is the number of a random shuffle, `moments` whose second moments the rounding reads:
    public, own, blend, or `-` if it reads none.
    """

    allocation: str
    calibration: str
    order: str
    draw: int
    label: str
    rounding: str
    moments: str
    losses: str = NOBODY
    """Whose clips show what each bit depth costs: public, own, or `-` if no table is read."""
    runtime: str = EMULATED
    """What computes the model when it is tested. If not fedsim, the calibration is that of a model
    whose weights only are quantized."""

    @property
    def rounded_by_device(self) -> bool:
        """Whether the device rounds the weights, on second moments that never leave it."""
        return self.moments in ("own", "blend")


def cells_of(method: MethodSettings, quantization: QuantizationSettings) -> list[Cell]:
    """Return the cells of a method: one for each way to quantize, and each random draw.

    A label names the rounding, and whose moments it reads, where they are not those of the section
    `quantization`.
    """
    cells = []
    for calibration, rounding, moments, runtime in method.ways():
        for draw in range(method.draws):
            name = method.allocation if method.order == "descending" else f"{method.allocation}-asc"
            name += f"-{draw + 1}" if method.draws > 1 else ""
            label = f"{name}/{calibration if runtime == EMULATED else runtime}"
            if rounding != quantization.rounding:
                label += f"/{rounding}"
            if moments not in (NOBODY, quantization.moments):
                label += f"/{moments}"
            losses = method.losses or NOBODY
            if losses not in (NOBODY, quantization.losses):
                label += f"/{losses}-losses"
            inputs = calibration if runtime == EMULATED else _NOT_EMULATED
            made = method.allocation, inputs, method.order, draw, label, rounding
            cells.append(Cell(*made, moments, losses, runtime))
    return cells


def all_cells(scenario: Scenario) -> list[Cell]:
    """Return every cell of the scenario once, in the order of its methods."""
    quantized = [method for method in scenario.methods if method.allocation != FULL_PRECISION]
    return list(
        dict.fromkeys(
            cell for method in quantized for cell in cells_of(method, scenario.quantization)
        )
    )


def measure_of(scenario: Scenario) -> str:
    """Return the measure that devices are asked for; "" if no method reads their profiles."""
    reading = [method for method in scenario.methods if method.reads_profile]
    if not reading:
        return ""
    return LOSSES if reading[0].reads_table else scenario.quantization.sensitivity


def table_rounding(scenario: Scenario) -> str:
    """Return the rounding of the method for which devices make a table of losses."""
    return next(method.rounding[0] for method in scenario.methods if method.losses == "own")


def needs_profiles(scenario: Scenario) -> bool:
    """Return whether any method reads the devices' layer profiles."""
    return measure_of(scenario) != ""


def reads_public_clips(scenario: Scenario) -> bool:
    """Return whether anything that is measured on public clips has a part in any model."""
    return scenario.quantization.activation_bits == "auto" or any(
        cell.moments in ("public", "blend") or cell.losses == "public"
        for cell in all_cells(scenario)
    )


def needs_others(scenario: Scenario) -> bool:
    """Return whether any client tests a model that was tuned on another's clips."""
    return any(source != OWN for method in scenario.methods for source in method.tuned_on)


def sources(words: tuple[str, ...], client: str, clients: list[str]) -> list[str]:
    """Return the clients that the words of `tuned_on` mean for `client`; `clients` is sorted."""
    found: list[str] = []
    for word in words:
        if word == OWN:
            found.append(client)
        elif word == OTHER:
            found.append(clients[(clients.index(client) + 1) % len(clients)])
        elif word == EACH:
            found += [key for key in clients if key != client]
        else:
            found.append(word)
    return list(dict.fromkeys(found))


def stages(scenario: Scenario) -> tuple[str, ...]:
    """Return the stages that a run of the scenario shows."""
    if needs_others(scenario):
        return "sense", "personalize", "evaluate"
    if is_grouped(scenario):
        return "sense", "aggregate", "personalize"
    return ("personalize",)


def is_grouped(scenario: Scenario) -> bool:
    """Return whether devices release their profiles in groups, by secure aggregation."""
    return scenario.privacy.chosen.grouped and needs_profiles(scenario)


def timed_model(scenario: Scenario) -> str:
    """Return the label of the model that the clock times.

    Raises:
        FedsimError: if `clock.model` is not a model that the scenario makes.
    """
    labels = [cell.label for cell in all_cells(scenario)]
    model = scenario.clock.model
    if model is None:
        return labels[0]
    if model not in labels:
        raise FedsimError(f"clock.model: no method makes {model!r}: {nearest(model, labels)}")
    return model


def forward_passes(scenario: Scenario, clients: int) -> float:
    """Return the total number of clip forward passes for this many clients.

    Each tuning clip once, for sensing and calibration together, and each test clip once for every
    model that is tested on it.
    """
    models = 0
    for method in scenario.methods:
        if method.allocation == FULL_PRECISION:
            models += 1
            continue
        others = {*method.tuned_on} - {OWN}
        foreign = clients - 1 if EACH in others else len(others)
        models += len(cells_of(method, scenario.quantization)) * (
            foreign + (OWN in method.tuned_on)
        )
    corpus = scenario.corpus
    return clients * (corpus.tuning_clips + corpus.test_clips * models)
