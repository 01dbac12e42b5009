"""What a run will cost, estimated by a rehearsal with a few of its clients.

The rehearsal is the study itself on its own engine, in a scratch folder, with clients spread evenly
over all of them, and is broken off as soon as it has been watched for long enough. Models, clips,
machines and other people's jobs are then in the figures as they are.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType

from fedsim.base import progress
from fedsim.base.imports import importing
from fedsim.engine.settings import cores
from fedsim.engine.worker import load_app
from fedsim.results.folder import RunFolder
from fedsim.results.ledger import Ledger
from fedsim.run.engine_choice import choose_engine, with_chosen_engine
from fedsim.run.matrix import computed
from fedsim.run.single import CLIENT_APP, run_scenario
from fedsim.scenario.cells import forward_passes, is_grouped, needs_others
from fedsim.scenario.matrix import expand
from fedsim.scenario.schema import Scenario
from fedsim.study.clients import client_keys

WATCHED_S = 15.0
"""Seconds to watch clients finish once every worker has finished one."""
MAX_REHEARSED = 200
"""Clients in a rehearsal."""
_POLL_S = 0.05


@dataclass(frozen=True)
class Estimate:
    """What all runs of a scenario take together."""

    combinations: int
    """Runs: one, or one for each combination of a matrix."""
    clients: int
    """In each run."""
    passes: int
    """Clips that go through the model once, in all runs."""
    seconds: float
    driver_bytes: int | None
    """Peak memory of the driver so far; None where the system does not tell."""
    worker_bytes: int | None
    """Peak memory of the largest worker; None likewise, and where the driver works itself."""
    disk_bytes: int
    """Of the run folders at the end."""
    bank_bytes: int
    """Of packed layers, while a run goes on."""
    rehearsed: int
    """Clients that finished in the rehearsal."""
    workers: int


class _EnoughError(Exception):
    """The rehearsal has been watched for long enough."""


class _Stopwatch(progress.Progress):
    """Notes when clients finish, and ends the rehearsal."""

    def __init__(self, workers: int, *, may_end: bool) -> None:
        super().__init__()
        self.marks: list[float] = []
        self._workers, self._may_end = workers, may_end

    def advance(self, n: int = 1) -> None:
        """Count clients as done; raises `_EnoughError` once enough have been watched."""
        super().advance(n)
        now = time.monotonic()
        self.marks.append(now)
        warm = self.marks[self._workers :]
        if self._may_end and len(warm) >= 2 * self._workers and now - warm[0] > WATCHED_S:
            raise _EnoughError


def estimate(scenario: Scenario, scratch: Path | None = None) -> Estimate:
    """Rehearse a scenario for some 15 seconds beyond its start, and return what all of it takes.

    Of a matrix the first combination is rehearsed, and a pass is taken to cost as much in each.

    Args:
        scenario: what would be run.
        scratch: an existing folder in which to rehearse, which every machine of a Ray cluster sees;
            None is the system's folder for temporary files.

    Raises `FedsimError` for what a run would stop at.
    """
    cells = expand(scenario)
    first = cells[0].scenario
    keys = client_keys(first)
    workers = _workers(first, len(keys))
    staged = needs_others(first) or is_grouped(first)  # no client finishes before all have begun
    least = max(2 * workers + 1, 2 * first.privacy.cohort.size * is_grouped(first))
    chosen = _spread(keys, least if staged else MAX_REHEARSED)
    named = {source for method in first.methods for source in method.tuned_on} & set(keys)
    chosen = sorted({*chosen, *named})
    clients = first.clients.model_copy(update={"select": tuple(chosen), "limit": None})
    few = with_chosen_engine([(first, len(keys))], first).model_copy(update={"clients": clients})
    watch = _Stopwatch(workers, may_end=not staged)
    import_s = _imported(first, len(keys))
    with tempfile.TemporaryDirectory(dir=scratch, prefix="fedsim-estimate-") as home:
        out = Path(home) / "run"
        began = time.monotonic()
        with _Meter(out / "bank") as meter, progress.using(watch), suppress(_EnoughError):
            run_scenario(few, out)
        ended = time.monotonic()
        finished = _finished(out)
        once, each = _disk(out, Path(home) / "empty.sqlite", max(finished, 1))
    warm = watch.marks[:1] if staged else watch.marks[min(workers, len(watch.marks)) - 1 :]
    if staged:  # from the first that is sensed to the end
        pass_s = (ended - warm[0]) / forward_passes(first, len(chosen))
    else:
        client_s = (warm[-1] - warm[0]) / max(len(warm) - 1, 1)
        pass_s = client_s * len(keys) / forward_passes(first, len(keys))
    runs = computed(scenario)
    passes = [forward_passes(run, len(client_keys(run))) for run in runs]
    return Estimate(
        combinations=len(cells),
        clients=len(keys),
        passes=round(sum(passes)),
        seconds=import_s + len(runs) * (warm[0] - began) + pass_s * sum(passes),
        driver_bytes=meter.driver or None,
        worker_bytes=meter.worker or None,
        disk_bytes=round(len(cells) * (once + each * len(keys))),
        bank_bytes=meter.bank,
        rehearsed=finished,
        workers=workers,
    )


def _imported(scenario: Scenario, clients: int) -> float:
    """Import what clients need, where this process plays them; return the seconds it took.

    That is once for all combinations; workers that are processes of their own do it for each.
    """
    began = time.monotonic()
    if choose_engine([(scenario, clients)]) == "inprocess":
        with importing():
            load_app(CLIENT_APP)
    return time.monotonic() - began


def _workers(scenario: Scenario, clients: int) -> int:
    engine = scenario.engine
    if choose_engine([(scenario, clients)]) == "inprocess":
        return 1
    return min(engine.workers or max(1, cores() // engine.threads), clients)


def _spread(keys: Sequence[str], most: int) -> list[str]:
    n = min(len(keys), most)
    return [keys[i * len(keys) // n] for i in range(n)]


def _finished(out: Path) -> int:
    with Ledger(RunFolder(out).ledger) as ledger:
        return len(ledger.finished() | {failure.client for failure in ledger.failures()})


def _disk(out: Path, empty: Path, finished: int) -> tuple[float, float]:
    """Return the bytes of a run folder that are there once, and those for each client.

    A ledger without a client is written to `empty`, to see what it takes.
    """
    with Ledger(empty):
        pass
    folder, all_bytes, no_client = RunFolder(out), _bytes_below(out), empty.stat().st_size
    tables = (folder.results, folder.timeline)
    grown = folder.ledger.stat().st_size - no_client + _bytes_below(folder.models)
    grown += sum(table.stat().st_size for table in tables if table.is_file())
    return all_bytes - grown, grown / finished


class _Meter:
    """Watches the memory of this process and its workers, and the bank, while open."""

    def __init__(self, bank: Path) -> None:
        self.driver = self.worker = self.bank = 0
        self._folder = bank
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Meter:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        for look in count():
            self.bank = max(self.bank, _bytes_below(self._folder))
            if look % 10 == 0:  # to go through all processes is dear, and peaks stay
                self.driver, worker = _peaks()
                self.worker = max(self.worker, worker)
            if self._over.wait(_POLL_S):
                return


def _peaks() -> tuple[int, int]:
    """Return the peak memory of this process and of the largest Ray worker below it, in bytes.

    Zero where the system has no /proc.
    """
    parents: dict[int, int] = {}
    peaks: dict[int, int] = {}
    workers = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            said = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
            pid = int(folder.name)
            parents[pid] = int(said["PPid"])
            peaks[pid] = int(said.get("VmHWM", "0 kB").split()[0]) * 1024
            if (folder / "cmdline").read_bytes().startswith(b"ray::"):
                workers.add(pid)
        except (OSError, ValueError, KeyError):
            continue  # it has ended
    own = os.getpid()

    def is_ours(pid: int) -> bool:
        while pid in parents and pid != own:
            pid = parents[pid]
        return pid == own

    return peaks.get(own, 0), max((peaks[p] for p in workers if is_ours(p)), default=0)


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # it has been removed
    return total
