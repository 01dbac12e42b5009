"""The cost of a run, estimated by a rehearsal with a few of its clients.

The rehearsal runs the scenario on its own engine, in a scratch folder, with an even choice of the
clients, and stops as soon as enough of them have been timed. Its figures therefore include the
model, the clips and the machines as they are, with whatever else runs on these.
"""

from __future__ import annotations

import math
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
from fedsim.engine.worker import load_app
from fedsim.errors import FedsimError
from fedsim.results.folder import RunFolder
from fedsim.results.ledger import Ledger
from fedsim.results.ledger_reader import read_ledger
from fedsim.runner.contents import Contents
from fedsim.runner.engine_choice import choose_engine, n_workers, with_chosen_engine
from fedsim.runner.matrix import computed
from fedsim.runner.single import CLIENT_APP, run_scenario
from fedsim.scenario.cells import forward_passes, is_grouped, needs_others
from fedsim.scenario.matrix import expand
from fedsim.scenario.schema import Scenario
from fedsim.study.clients import client_keys, keys_of_cells

WATCHED_S = 15.0
"""Seconds for which clients are timed, after every worker has finished one."""
MAX_REHEARSED = 200
"""The largest number of clients in a rehearsal."""
_POLL_S = 0.05


@dataclass(frozen=True)
class Estimate:
    """What all runs of a scenario cost together."""

    combinations: int
    """Number of runs: one, or one per combination of a matrix."""
    clients: int
    """Clients of each run."""
    passes: int
    """Forward passes of one clip through a model, in all runs."""
    seconds: float
    driver_bytes: int | None
    """Peak memory of this process; None if the system does not report it."""
    worker_bytes: int | None
    """Peak memory of the largest worker; None also if this process does the work itself."""
    disk_bytes: int
    """Size of all run folders at the end."""
    bank_bytes: int
    """Largest size of the packed layers that a run keeps on disk while it goes on."""
    rehearsed: int
    """Clients that finished in the rehearsal."""
    workers: int


class _Enough(BaseException):
    """Enough clients have been timed; it ends the rehearsal.

    It is not an `Exception`, as an interrupt is not: those of one client are caught on the way.
    """


class _Stopwatch(progress.Progress):
    """Takes the time of every client that finishes, and ends the rehearsal after `watched_s`.

    A rehearsal reports each finished client to the current `Progress`, so that an error raised
    here propagates out of the run. The first client of each worker includes its start and is not
    timed.
    """

    def __init__(self, workers: int, watched_s: float) -> None:
        super().__init__()
        self.times: list[float] = []
        """When clients finished, by `time.monotonic`."""
        self._workers, self._watched_s = workers, watched_s

    def advance(self, n: int = 1) -> None:
        """Count clients as done; raises `_Enough` once enough have been timed."""
        super().advance(n)
        now = time.monotonic()
        self.times.append(now)
        timed = self.times[self._workers :]
        if len(timed) >= 2 * self._workers and now - timed[0] > self._watched_s:
            raise _Enough


def estimate(
    scenario: Scenario, scratch: Path | None = None, watched_s: float = WATCHED_S
) -> Estimate:
    """Rehearse a scenario and return what running it will cost.

    Of a matrix only the first combination is rehearsed; a forward pass is assumed to take as long
    in the others.

    Args:
        scenario: the scenario to estimate.
        scratch: an existing folder for the rehearsal that all machines of a Ray cluster share; None
            for the system's temporary folder.
        watched_s: seconds for which clients are timed.

    Raises:
        FedsimError: for whatever would stop a run, and if clients fail in the rehearsal; where the
            scenario declares faults or has a fleet, only if all of them do.
    """
    cells = expand(scenario)
    first = cells[0].scenario
    keys = client_keys(first)
    workers = _workers(first, len(keys))
    staged = needs_others(first) or is_grouped(first)  # no client finishes before all have begun
    needed = max(2 * workers + 1, 2 * first.privacy.cohort.size * is_grouped(first))
    even = _spread(keys, needed if staged else MAX_REHEARSED)
    named = {source for method in first.methods for source in method.tuned_on} & set(keys)
    chosen = sorted({*even, *named})
    clients = first.clients.model_copy(update={"select": tuple(chosen), "limit": None})
    few = with_chosen_engine([(first, len(keys))], first).model_copy(update={"clients": clients})
    watch = _Stopwatch(workers, math.inf if staged else watched_s)
    import_s = _import_clients(first, len(keys))
    with tempfile.TemporaryDirectory(dir=scratch, prefix="fedsim-estimate-") as home:
        out = Path(home) / "run"
        began = time.monotonic()
        with _Meter(out / "bank") as meter, progress.using(watch), suppress(_Enough):
            run_scenario(few, out, Contents(read=False))
        ended = time.monotonic()
        _require_success(first, out)
        finished = _finished(out)
        once, each = _disk(out, Path(home) / "empty.sqlite", max(finished, 1))
    if staged:
        warm = watch.times[0]  # from the first client that has sensed to the end
        pass_s = (ended - warm) / forward_passes(first, len(chosen))
    else:
        timed = watch.times[min(workers, len(watch.times)) - 1 :]
        warm = timed[0]
        client_s = (timed[-1] - warm) / max(len(timed) - 1, 1)
        pass_s = client_s * len(keys) / forward_passes(first, len(keys))
    runs = computed(scenario)
    counts = map(len, keys_of_cells(runs))
    passes = [forward_passes(run, n) for run, n in zip(runs, counts, strict=True)]
    return Estimate(
        combinations=len(cells),
        clients=len(keys),
        passes=round(sum(passes)),
        seconds=import_s + len(runs) * (warm - began) + pass_s * sum(passes),
        driver_bytes=meter.driver or None,
        worker_bytes=meter.worker or None,
        disk_bytes=round(len(cells) * (once + each * len(keys))),
        bank_bytes=meter.bank,
        rehearsed=finished,
        workers=workers,
    )


def _import_clients(scenario: Scenario, clients: int) -> float:
    """Import the client app if this process runs the clients; return the seconds it took.

    Here that happens once for all combinations, while workers of Ray do it in each.
    """
    began = time.monotonic()
    if choose_engine([(scenario, clients)]) == "inprocess":
        with importing():
            load_app(CLIENT_APP)
    return time.monotonic() - began


def _workers(scenario: Scenario, clients: int) -> int:
    if choose_engine([(scenario, clients)]) == "inprocess":
        return 1
    return min(n_workers(scenario.engine), clients)


def _spread(keys: Sequence[str], limit: int) -> list[str]:
    """Return an even choice of at most `limit` keys."""
    n = min(len(keys), limit)
    return [keys[i * len(keys) // n] for i in range(n)]


def _finished(out: Path) -> int:
    with read_ledger(RunFolder(out).ledger) as ledger:
        return len(ledger.finished() | {failure.client for failure in ledger.failures()})


def _require_success(scenario: Scenario, out: Path) -> None:
    """Raise `FedsimError` if clients of the rehearsal failed that should not."""
    with read_ledger(RunFolder(out).ledger) as ledger:
        failures = [found for found in ledger.failures() if found.outcome == "failed"]
        succeeded = len(ledger.finished())
    if failures and not (succeeded and (scenario.fleet is not None or scenario.faults)):
        first = failures[0]
        raise FedsimError(
            f"{len(failures):,} of {len(failures) + succeeded:,} clients failed in the rehearsal,"
            f" the first, {first.client!r}, at {first.stage}: {first.reason}"
        )


def _disk(out: Path, empty: Path, finished: int) -> tuple[float, float]:
    """Return the bytes of a run folder that do not depend on its clients, and those per client.

    A ledger without clients is written to `empty`, to learn its size.
    """
    with Ledger(empty):
        pass
    folder = RunFolder(out)
    of_clients = folder.ledger.stat().st_size - empty.stat().st_size + _bytes_below(folder.models)
    tables = (folder.results, folder.timeline)
    of_clients += sum(table.stat().st_size for table in tables if table.is_file())
    return _bytes_below(out) - of_clients, of_clients / finished


class _Meter:
    """Measures the peak memory of this process and its workers, and the peak size of the bank."""

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
        for i in count():
            self.bank = max(self.bank, _bytes_below(self._folder))
            if i % 10 == 0:  # reading all of /proc is slow, and the peaks in it do not fall
                self.driver, worker = _peaks()
                self.worker = max(self.worker, worker)
            if self._over.wait(_POLL_S):
                return


def _peaks() -> tuple[int, int]:
    """Return the peak memory of this process and of its largest Ray worker, in bytes.

    Both are zero on a system without /proc.
    """
    parents: dict[int, int] = {}
    peaks: dict[int, int] = {}
    workers = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            lines = (folder / "status").read_text().splitlines()
            status = dict(line.split(":", 1) for line in lines)
            pid = int(folder.name)
            parents[pid] = int(status["PPid"])
            peaks[pid] = int(status.get("VmHWM", "0 kB").split()[0]) * 1024
            if (folder / "cmdline").read_bytes().startswith(b"ray::"):
                workers.add(pid)
        except (OSError, ValueError, KeyError):
            continue  # the process has ended
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
