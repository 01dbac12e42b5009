"""What a run prints at its end: the table of results, the fleet, and what else is to be known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from rich.console import Console

from fedsim.base.units import count_words
from fedsim.results.fleettable import print_fleet, print_fleets
from fedsim.results.reading import read_layers
from fedsim.results.table import print_matrix, print_statements, print_table
from fedsim.results.timed import read_round
from fedsim.runner.matrix import CellResult
from fedsim.runner.single import RunResult
from fedsim.scenario.methods import FULL_PRECISION
from fedsim.scenario.schema import Scenario
from fedsim.study.privacy_statement import read_statement


def print_run(scenario: Scenario, result: RunResult, console: Console) -> None:
    """Print the results of one run."""
    print_table(result.rows, result.failures, console)
    if scenario.fleet is not None:
        print_fleet(read_round(result.folder.timeline), console)
    print_statements([*_precision(scenario), *_statements([result])], console)


def print_cells(scenario: Scenario, cells: Sequence[CellResult], console: Console) -> None:
    """Print the results of every combination of a matrix."""
    print_matrix([(c.settings, c.result.rows, c.result.failures) for c in cells], console)
    if scenario.fleet is not None:
        timed = [(c.settings, read_round(c.result.folder.timeline)) for c in cells]
        print_fleets(timed, console)
    results = [cell.result for cell in cells]
    print_statements([*_precision(scenario), *_statements(results)], console)


def _precision(scenario: Scenario) -> list[str]:
    """Return a sentence if the full-precision model is not in float32 by `model.dtype`."""
    kinds = [
        kind
        for kind in scenario.matrix.get("model.dtype", (scenario.model.dtype,))
        if kind != "float32"
    ]
    if not kinds:
        return []
    return [f"{FULL_PRECISION} is the full-precision model, in {' or '.join(kinds)} (model.dtype)."]


def _statements(results: Sequence[RunResult]) -> list[str]:
    """Return what is to be known of runs: the privacy statements of those whose devices do not
    release plain values, and which layers were rounded without compensation."""
    said = [read_statement(result.folder.privacy) for result in results]
    private = [one.sentence for one in said if one is not None and not one.plain]
    return private + list(dict.fromkeys(chain.from_iterable(map(_uncompensated, results))))


def _uncompensated(result: RunResult) -> list[str]:
    """Return a sentence if the public clips gave layers too little for compensated rounding."""
    layers = read_layers(result.folder.layers)
    bare = [layer["name"] for layer in layers if layer.get("moments") is False]
    if not bare:
        return []
    named = ", ".join(bare[:3]) + (f" and {len(bare) - 3} more" if len(bare) > 3 else "")
    return [
        f"{count_words(len(bare), 'layer')} rounded without compensation, since the public clips"
        f" gave too few inputs: {named}."
    ]
