"""What a scenario asks for: which models of each client, whose clips they are tuned on, in which
stages.

Cheap to import: a run shows its stages before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.scenario.privacy import COHORT
from fedsim.scenario.schema import FULL_PRECISION, MethodSettings, Scenario

SENSITIVITY_FREE = ("uniform", "shuffled")
"""Allocations that look at no sensitivity."""
NOBODY = "-"


@dataclass(frozen=True)
class Cell:
    """One way to make a model, whoever's clips it is tuned on. `draw` numbers random shuffles."""

    allocation: str
    calibration: str
    order: str
    draw: int
    label: str


def cells_of(method: MethodSettings) -> list[Cell]:
    """Return the cells of a method: one for each calibration and random draw."""
    cells = []
    for calibration in method.calibration:
        for draw in range(method.draws):
            name = method.allocation if method.order == "descending" else f"{method.allocation}-asc"
            name += f"-{draw + 1}" if method.draws > 1 else ""
            label = f"{name}/{calibration}"
            cells.append(Cell(method.allocation, calibration, method.order, draw, label))
    return cells


def all_cells(scenario: Scenario) -> list[Cell]:
    """Return every cell of the scenario once, in the order of its methods."""
    quantized = [m_ for m_ in scenario.methods if m_.allocation != FULL_PRECISION]
    return list(dict.fromkeys(cell for method in quantized for cell in cells_of(method)))


def needs_sensitivity(scenario: Scenario) -> bool:
    """Return whether any method looks at sensitivities."""
    return any(cell.allocation not in SENSITIVITY_FREE for cell in all_cells(scenario))


def needs_others(scenario: Scenario) -> bool:
    """Return whether any client tests a model that was tuned on another's clips."""
    return any(source != "own" for method in scenario.methods for source in method.tuned_on)


def sources(words: tuple[str, ...], client: str, clients: list[str]) -> list[str]:
    """Return the clients whose clips `tuned_on` words mean for `client`; `clients` sorted."""
    found: list[str] = []
    for word in words:
        if word == "own":
            found.append(client)
        elif word == "other":
            found.append(clients[(clients.index(client) + 1) % len(clients)])
        elif word == "each":
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
    """Return whether clients tell of their sensitivities in groups."""
    return scenario.privacy.release == COHORT and needs_sensitivity(scenario)
