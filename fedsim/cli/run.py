"""`fedsim run`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.cli.options import add_engine, add_scenario, chosen_scenario, with_engine

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

_DESCRIPTION = """\
Run a scenario. On a terminal a line shows the stage, clients done, clients a second and the time
left. At the end comes a table: one line a method, with model size, mean bit depth and word error
rate (or accuracy), then one line a client, then the clients that failed and why, then the fleet by
class of device if the scenario has one.

The run folder holds scenario.yaml as resolved, versions.json, ledger.sqlite (each client as it
finished), results.parquet and, if the scenario says so, timeline.parquet (a fleet) and models/."""


def add(verbs: argparse._SubParsersAction) -> None:
    """Add the command."""
    run = verbs.add_parser(
        "run",
        help="run a scenario and print its table",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_scenario(run, nargs="?")
    run.add_argument(
        "--resume",
        metavar="DIR",
        type=Path,
        help="go on with the run in this folder, which was cut off, in place of SCENARIO",
    )
    add_engine(run)
    run.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="the run folder, empty or new (default: runs/<scenario>/<UTC time>)",
    )
    run.set_defaults(verb=_run, wrong_usage=run.error)


def _run(options: argparse.Namespace) -> int:
    # First, so that mistakes show at once.
    scenario = with_engine(_scenario_of(options), options)

    from rich.console import Console

    from fedsim.base import progress
    from fedsim.results.folder import new_run_path
    from fedsim.results.table import stdout_console
    from fedsim.run.matrix import run_matrix
    from fedsim.run.show import print_cells, print_run
    from fedsim.run.single import resume_run, run_scenario

    out = options.resume or options.out or new_run_path(scenario.name)
    try:
        with progress.show(Console(stderr=True)):
            if scenario.matrix:
                cells = run_matrix(scenario, out)
            elif options.resume:
                result = resume_run(out, scenario.engine)
            else:
                result = run_scenario(scenario, out)
    except KeyboardInterrupt:
        ledgers = sorted(out.rglob("ledger.sqlite"))
        kept = f"the clients that finished are in {ledgers[-1]}" if ledgers else "nothing is kept"
        again = f"; fedsim run --resume {out} goes on" if ledgers and not scenario.matrix else ""
        print(f"interrupted: {kept}{again}", file=sys.stderr)
        return 130
    finally:
        _remove_if_empty(out)
    console = stdout_console()
    with console.capture() as captured:
        if scenario.matrix:
            print_cells(scenario, cells, console)
        else:
            print_run(scenario, result, console)
    print(captured.get())
    print(f"run folder: {out.absolute()}")
    results = [cell.result for cell in cells] if scenario.matrix else [result]
    return 0 if any(r.rows for r in results) or not any(r.failures for r in results) else 1


def _scenario_of(options: argparse.Namespace) -> Scenario:
    """Return the scenario that is named, or that of the run to be resumed."""
    from fedsim.errors import FedsimError

    if (options.scenario is None) == (options.resume is None):
        options.wrong_usage("name a SCENARIO to run, or a run folder with --resume: one of the two")
    if options.resume is None:
        return chosen_scenario(options)
    if options.set or options.out or options.threads:
        raise FedsimError(
            "--resume goes on with a run as it was begun: leave out --set, --out and --threads, "
            "on which results or their place depend"
        )
    from fedsim.results.folder import open_run
    from fedsim.scenario import load_scenario

    scenario = load_scenario(open_run(options.resume).scenario)
    if scenario.matrix:
        raise FedsimError(
            f"{options.resume}: this is a matrix of runs: run its scenario again with --out beside "
            f"it, and what finished is taken over"
        )
    return scenario


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()  # refuses a folder that holds anything
