"""What a run prints at its end: the table of results, the fleet, and the privacy statements."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from fedsim.results.fleettable import print_fleet, print_fleets
from fedsim.results.table import print_matrix, print_statements, print_table
from fedsim.results.timed import read_round
from fedsim.run.matrix import CellResult
from fedsim.run.single import RunResult
from fedsim.scenario.schema import Scenario
from fedsim.study.privacy_statement import read_statement


def print_run(scenario: Scenario, result: RunResult, console: Console) -> None:
    """Print the results of one run."""
    print_table(result.rows, result.failures, console)
    if scenario.fleet is not None:
        print_fleet(read_round(result.folder.timeline), console)
    print_statements(_statements([result]), console)


def print_cells(scenario: Scenario, cells: Sequence[CellResult], console: Console) -> None:
    """Print the results of every combination of a matrix."""
    print_matrix([(c.settings, c.result.rows, c.result.failures) for c in cells], console)
    if scenario.fleet is not None:
        timed = [(c.settings, read_round(c.result.folder.timeline)) for c in cells]
        print_fleets(timed, console)
    print_statements(_statements([cell.result for cell in cells]), console)


def _statements(results: Sequence[RunResult]) -> list[str]:
    """Return the privacy statements of the runs whose devices do not release plain values."""
    statements = [read_statement(result.folder.privacy) for result in results]
    return [s.sentence for s in statements if s is not None and not s.plain]
