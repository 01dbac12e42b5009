"""`fedsim run`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.cli.links import link
from fedsim.cli.options import add_engine, add_scenario, chosen_scenario, with_engine

if TYPE_CHECKING:
    from fedsim.scenario import Scenario

_DESCRIPTION = """\
Run a scenario. On a terminal one line shows the stage, the clients that are done, clients per
second and the time left. At the end a table is printed: one line per method with model size, mean
bit depth and word error rate (or accuracy), one line per client, the clients that failed and why,
and the fleet by device class if the scenario has one; then what was found, in one sentence.

The run folder holds scenario.yaml as resolved, versions.json, ledger.sqlite (written as clients
finish), results.parquet, report.html and, for a fleet, timeline.parquet; with save_models also
models/."""


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
        help="continue the interrupted run in this folder, in place of SCENARIO",
    )
    add_engine(run)
    run.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="the run folder, empty or new (default: runs/<scenario>/<UTC time>)",
    )
    run.add_argument(
        "--no-report", action="store_true", help="leave out report.html, which takes seconds"
    )
    run.set_defaults(verb=_run, wrong_usage=run.error)


def _run(options: argparse.Namespace) -> int:
    # Before the imports below, so that mistakes are reported at once.
    scenario = with_engine(_scenario_of(options), options)

    from rich.console import Console

    from fedsim.api.studies import open_run
    from fedsim.base import progress
    from fedsim.results.folder import new_run_path
    from fedsim.results.table import stdout_console
    from fedsim.runner.show import print_cells, print_run
    from fedsim.runner.study import run_study

    out = options.resume or options.out or new_run_path(scenario.name)
    try:
        with progress.show(Console(stderr=True)):
            cells = run_study(scenario, out, resume=options.resume is not None)
    except KeyboardInterrupt:
        ledgers = sorted(out.rglob("ledger.sqlite"))
        kept = f"the clients that finished are in {ledgers[-1]}" if ledgers else "nothing is kept"
        again = f"; to continue: fedsim run --resume {out}"
        again = again if ledgers and not scenario.matrix else ""
        print(f"interrupted: {kept}{again}", file=sys.stderr)
        return 130
    finally:
        _remove_if_empty(out)
    console = stdout_console()
    with console.capture() as captured:
        if scenario.matrix:
            print_cells(scenario, cells, console)
        else:
            print_run(scenario, cells[0].result, console)
    print(captured.get())
    results = [cell.result for cell in cells]
    _print_hints(scenario, {row.metric for r in results for row in r.rows})
    if any(r.rows for r in results):
        found = open_run(out)
        print(f"{found.finding}\n")
        print(f"run folder: {link(out)}", flush=True)
        if not options.no_report:
            print(f"report: {link(found.report())}")
        return 0
    print(f"run folder: {link(out)}")
    return 1 if any(r.failures for r in results) else 0


def _scenario_of(options: argparse.Namespace) -> Scenario:
    """Return the scenario that is named, or that of the run that is to be resumed."""
    from fedsim.errors import FedsimError

    if (options.scenario is None) == (options.resume is None):
        options.wrong_usage("give either a SCENARIO to run, or --resume and a run folder")
    if options.resume is None:
        return chosen_scenario(options)
    if options.set or options.out or options.threads:
        raise FedsimError(
            "--resume continues a run as it was begun: remove --set, --out and --threads, which "
            "change the results or their folder"
        )
    from fedsim.api.studies import begun_scenario

    return begun_scenario(options.resume)


def _print_hints(scenario: Scenario, metrics: Collection[str]) -> None:
    """Print how many references were not scored because they have no word, and of whom; whose
    spaces do not go with the metrics; and what of the model is not used."""
    from fedsim.errors import FedsimError
    from fedsim.speech.corpus import open_clients
    from fedsim.speech.models.processor import left_out
    from fedsim.speech.wordless import wordless_line
    from fedsim.study.metric import segmented_line, unspaced_line

    corpus, texts = scenario.corpus, scenario.text_normalizer
    with contextlib.suppress(FedsimError):  # a corpus that is gone by now spoils no result
        clients = open_clients(corpus, scenario.clients, scenario.seed, texts)
        lines = [wordless_line(clients)]
        if "wer" in metrics and scenario.metric == "auto":
            lines.append(unspaced_line(scenario, clients))
        if "cer" in metrics and texts != "unspaced" and clients.clips is None:
            lines.append(segmented_line(clients))
        lines.append(left_out(scenario.model.id))
        for line in filter(None, lines):
            print(line)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()  # fails for a folder that is not empty
