"""`fedsim estimate`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from fedsim.base.units import count_words, size_words, time_words
from fedsim.cli.options import add_engine, add_scenario, chosen_scenario, with_engine

_DESCRIPTION = """\
Estimate what a scenario will cost before it is run: clients, forward passes, time, memory and disk.
Some of the clients are run on the scenario's own engine in a scratch folder: half a minute with a
small model, several minutes with a large one."""


def add(verbs: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = verbs.add_parser(
        "estimate",
        help="estimate what a scenario will cost, by a short rehearsal",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_scenario(parser)
    add_engine(parser)
    parser.add_argument(
        "--scratch",
        metavar="DIR",
        type=Path,
        help="a folder for the rehearsal, such as one that all machines of a cluster share "
        "(default: the system's temporary folder); nothing is left in it",
    )
    parser.set_defaults(verb=_estimate)


def _estimate(options: argparse.Namespace) -> int:
    scenario = with_engine(chosen_scenario(options), options)
    from fedsim.errors import FedsimError
    from fedsim.runner.estimate import estimate

    if options.scratch is not None and not os.path.isdir(options.scratch):
        raise FedsimError(f"--scratch {options.scratch}: there is no such folder: create it first")
    print(f"rehearsing {scenario.name} ...", file=sys.stderr, flush=True)
    found = estimate(scenario, options.scratch)
    runs = f"{count_words(found.combinations, 'run')} of " if found.combinations > 1 else ""
    lines = {
        "clients": f"{runs}{found.clients:,}",
        "forward passes": f"{found.passes:,} (one clip through a model once)",
        "time": f"{time_words(found.seconds)} with {count_words(found.workers, 'worker')}",
        "memory": _memory(found.driver_bytes, found.worker_bytes, found.workers),
        "disk": f"{size_words(found.disk_bytes)} at the end, and about "
        f"{size_words(found.bank_bytes)} of packed layers while it runs",
    }
    for name, text in lines.items():
        print(f"{name:16}{text}")
    print(f"\nrehearsed with {count_words(found.rehearsed, 'client')}; nothing was kept")
    return 0


def _memory(driver: int | None, worker: int | None, workers: int) -> str:
    if driver is None:
        return "not reported by this system"
    if worker is None:
        return f"{size_words(driver)} in one process"
    whole = driver + workers * worker
    return f"{size_words(whole)}: the driver {size_words(driver)}, each worker {size_words(worker)}"
