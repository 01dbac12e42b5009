"""A study from start to end: one run, or every combination of a matrix."""

from __future__ import annotations

from pathlib import Path

from fedsim.runner.matrix import CellResult, run_matrix
from fedsim.runner.single import resume_run, run_scenario
from fedsim.scenario.schema import Scenario


def run_study(scenario: Scenario, out: Path, *, resume: bool = False) -> list[CellResult]:
    """Run a scenario in the folder `out`; return the results of each combination.

    Args:
        scenario: the scenario; without a matrix it has one combination, with no settings.
        out: the run folder, empty or new; to resume, that of the run that was cut off.
        resume: continue that run, on the engine of `scenario`; not for a matrix.

    Raises:
        FedsimError: as `run_scenario`, `run_matrix` and `resume_run`.
    """
    if scenario.matrix:
        return run_matrix(scenario, out)
    result = resume_run(out, scenario.engine) if resume else run_scenario(scenario, out)
    return [CellResult({}, result)]
