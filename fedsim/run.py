"""Running a scenario from start to end: clients, run folder, engine, server, table."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedsim.assignment import Assignment
from fedsim.base import progress
from fedsim.base.imports import importing
from fedsim.engine import EngineSettings, open_grid
from fedsim.errors import FedsimError
from fedsim.results.folder import RunFolder, create_run, locked, open_run, write_results
from fedsim.results.ledger import Failure, Ledger
from fedsim.results.rows import Row
from fedsim.scenario.clients import Devices, check_sources
from fedsim.scenario.privacy import check_privacy
from fedsim.scenario.schema import EngineChoice, Scenario

CLIENT_APP = "clients.app:app"


@dataclass(frozen=True)
class RunResult:
    """What a run left: its folder, its rows in table order, and what failed."""

    folder: RunFolder
    rows: list[Row]
    failures: list[Failure]


def run_scenario(scenario: Scenario, out: Path | None = None) -> RunResult:
    """Run a scenario and write its run folder (`out`, or a new one under `runs/`).

    What finished before an error or an interruption is in the ledger and in `results.parquet`;
    `resume_run` goes on from there. Raises `FedsimError` for what no client could mend: corpus,
    model, engine, folder.
    """
    clients = client_keys(scenario)
    return _run(create_run(out, scenario), scenario, clients)


def resume_run(path: Path, engine: EngineChoice | None = None) -> RunResult:
    """Go on with a run that was cut off, and return what it would have returned.

    Clients that finished are not computed again; those that failed are tried again. `engine`
    replaces the scenario's. Raises `FedsimError` as `run_scenario` does, and for a folder that is
    no run's or belongs to a run that is going on.
    """
    from fedsim.scenario.load import load_scenario

    folder = open_run(path)
    scenario = load_scenario(folder.scenario)
    if engine is not None:
        scenario = scenario.model_copy(update={"engine": engine})
    return _run(folder, scenario, client_keys(scenario))


def client_keys(scenario: Scenario) -> list[str]:
    """Return the keys of a scenario's clients, in sorted order.

    Raises `FedsimError` for a corpus that cannot be opened, and where the scenario's budgets and
    sources, or its privacy, do not fit the clients that were found.
    """
    with importing():
        from fedsim.speech.corpus import open_clients

    clients = list(open_clients(scenario.corpus, scenario.clients, scenario.seed))
    check_sources(scenario, clients)
    check_privacy(scenario, clients)
    for _ in Devices(scenario, clients).values():
        pass  # one that can execute nothing is told before anything runs
    if scenario.fleet is not None:
        from fedsim.fleet.rounds import timed_model

        timed_model(scenario)
    return clients


def _run(folder: RunFolder, scenario: Scenario, clients: Sequence[str]) -> RunResult:
    """Run what the ledger of a folder does not hold yet, on the scenario's engine."""
    engine = scenario.engine

    def serve(assignment: Assignment) -> None:
        run_config = assignment.to_run_config()
        settings = EngineSettings(
            engine.workers, engine.threads, engine.address, shared=assignment.run_dir
        )
        with open_grid(engine.kind, CLIENT_APP, clients, run_config, settings) as grid:
            with importing():  # only now: the engine's workers start meanwhile
                from flwr.app import Context, RecordDict

                from server.app import app as server_app

            context = Context(
                run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config
            )
            server_app(grid, context)

    return record(folder, scenario, clients, serve)


def record(
    folder: RunFolder,
    scenario: Scenario,
    clients: Sequence[str],
    serve: Callable[[Assignment], None],
) -> RunResult:
    """Let `serve` run the scenario into a run folder, and collect what it left there.

    Also where `serve` raises: what clients had finished by then is collected.
    """
    from server.cells import stages

    shown = progress.current()
    shown.start(len(clients), stages(scenario))
    shown.stage("starting workers", len(clients))
    engine, began, clock = scenario.engine, datetime.now(UTC), time.monotonic()
    assignment = Assignment(scenario.model_dump_json(), folder.path)
    with locked(folder), _bank(assignment.bank_dir):
        with Ledger(folder.ledger) as ledger:
            ledger.begin_again()
        try:
            serve(assignment)
            if scenario.fleet is not None:  # before the rows: both together would be the peak
                from fedsim.fleet.rounds import time_round

                time_round(folder, scenario, clients)
        finally:
            result = collect(folder, scenario)
            said = {
                "began": began.isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - clock, 3),
                "engine": engine.kind,
                "workers": 1 if engine.kind == "inprocess" else engine.workers,
                "threads": engine.threads,
                "clients": len(clients),
            }
            folder.timing.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    return result


def collect(folder: RunFolder, scenario: Scenario) -> RunResult:
    """Return what the ledger of a run holds, and write its `results.parquet`."""
    with Ledger(folder.ledger) as ledger:
        result = RunResult(folder, ledger.rows(), ledger.failures())
    write_results(folder, result.rows, scenario)
    return result


@contextmanager
def _bank(folder: Path) -> Iterator[None]:
    """Make the folder of packed layers, which workers read; it goes when the run ends."""
    try:
        folder.mkdir(exist_ok=True)  # one that a killed run left holds the same bytes
    except OSError as error:
        raise FedsimError(f"{folder}: the run cannot be written here: {error.strerror}") from error
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
