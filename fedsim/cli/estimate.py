"""`fedsim estimate`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.base.units import count_words, size_words, time_words
from fedsim.cli.options import add_engine, add_scenario, chosen_scenario, with_engine

if TYPE_CHECKING:
    from fedsim.runner.memory import RunMemory

_DESCRIPTION = """\
Estimate what a scenario will cost before it is run: clients, forward passes, time, memory and disk.
First comes the memory that follows from the model's shapes, on the host and on a GPU, which need
not be there. Then some of the clients are run on the scenario's own engine in a scratch folder:
half a minute with a small model, several minutes with a large one."""


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
    from fedsim.runner.memory import memory_of

    if options.scratch is not None and not os.path.isdir(options.scratch):
        raise FedsimError(f"--scratch {options.scratch}: there is no such folder: create it first")
    for line in bound_lines(memory_of(scenario)):
        print(line)
    print(flush=True)
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
        return f"{size_words(driver)} on the host, in one process"
    whole = driver + workers * worker
    parts = f"the driver {size_words(driver)}, each worker {size_words(worker)}"
    return f"{size_words(whole)} on the host: {parts}"


def bound_lines(memory: RunMemory) -> list[str]:
    """Return as lines of text what a run takes at most: a table of parts, and the sums."""
    from fedsim.runner.memory import PARTS

    processes = {"worker": memory.worker, "server": memory.server}
    places = ("host",) if memory.device == "cpu" else ("host", "GPU")
    columns = [(process, place) for process in processes for place in places]
    head = [process if len(places) == 1 else f"{process}, {place}" for process, place in columns]
    held = {part.name for one in processes.values() for part in one.parts}
    rows: list[tuple[str, str | None]] = [(name, name) for name in PARTS if name in held]
    table = [("", *head)]
    for label, name in [*rows, ("at one time", None)]:
        peaks = {process: one.peak(name) for process, one in processes.items()}
        sizes = [peaks[process][places.index(place)] for process, place in columns]
        table.append((label, *(size_words(size) if size else "-" for size in sizes)))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "memory by the model's shapes, at most; activations, caches and libraries come on top:"
    ]
    for first, *cells in table:
        fields = zip(cells, widths[1:], strict=True)
        lines.append("  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in fields)]))
    count = count_words(memory.workers, "worker")
    who = "in one process" if memory.in_one_process else f"{count} and the server"
    lines.append(f"{'on the host':{widths[0]}}  {size_words(memory.host())}: {who}")
    if memory.device != "cpu":
        lines.append(f"{'on a GPU':{widths[0]}}  {_gpu(memory)}")
    return lines


def _gpu(memory: RunMemory) -> str:
    """Return in words what the server's GPU has to hold, and whether the one that is here can."""
    sharing = count_words(min(memory.workers, memory.per_gpu), "worker")
    who = "one process" if memory.in_one_process else f"{sharing} and the server"
    text = f"{size_words(memory.gpu())}: {who}"
    if memory.card is None:
        return f"{text}; none is here to compare with" if memory.device == "cuda" else text
    name, size = memory.card
    room = f"{name} has {size_words(size)}"
    if memory.memory_share < 1:
        room += f", {size_words(memory.memory_share * size)} for each worker"
    return f"{text}; {room}: {'it fits' if memory.fits() else 'it does not fit'}"
