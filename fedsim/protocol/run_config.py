"""Reads the run config, the same for the server app and every client app.

`fedsim run` sets everything: the scenario as JSON, and the run folder it made. `flwr run` sets the
name of a scenario and perhaps `out`; server and clients then derive the rest by the same rules,
each on its own machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.errors import FedsimError
from fedsim.scenario import Scenario, find_scenario, load_scenario

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flwr.app import Context


BANK = "bank"
"""The folder of packed layers in a run folder."""


@dataclass(frozen=True)
class RunConfig:
    """A scenario, as JSON, and the folder of its run.

    `one_process` says that a process plays many clients, one after the other, as in the engines of
    fedsim: their clips may share forward passes. Under `flwr run` each has a process of its own.
    """

    scenario: str
    run_dir: Path
    one_process: bool = True

    @property
    def bank_dir(self) -> Path:
        """The folder where the server writes packed layers and clients read them."""
        return self.run_dir / BANK

    def to_flower(self) -> dict[str, str | int | float | bool]:
        """Return this as Flower's run config."""
        return {"scenario": self.scenario, "run-dir": str(self.run_dir)}


def is_complete(run_config: Mapping[str, str | int | float | bool]) -> bool:
    """Return whether a run config names a run folder that exists already."""
    return "run-dir" in run_config


def read_run_config(context: Context) -> RunConfig:
    """Return the scenario and run folder that the run config in `context` names.

    Under `flwr run`, `scenario` is a name from `fedsim list` or a YAML file, and the run folder is
    `out`, or `runs/<scenario>/flower-<run id>` in the working folder.

    Raises:
        FedsimError: if there is no such scenario, it has mistakes, or it has a matrix.
    """
    run = context.run_config
    if is_complete(run):
        return RunConfig(str(run["scenario"]), Path(str(run["run-dir"])))
    scenario = _find(str(run.get("scenario", "")))
    out = str(run.get("out", "")) or f"runs/{scenario.name}/flower-{context.run_id}"
    path = Path(out).expanduser().absolute()
    return RunConfig(scenario.model_dump_json(), path, one_process=False)


@lru_cache(maxsize=1)
def _find(name: str) -> Scenario:
    """Load a scenario, once for all messages of a process."""
    scenario = load_scenario(find_scenario(name))
    if scenario.matrix:
        raise FedsimError(
            f"scenario {name!r} has a matrix, with one run per combination, and flwr run is one "
            f"run; use fedsim run, or leave the matrix out"
        )
    return scenario
