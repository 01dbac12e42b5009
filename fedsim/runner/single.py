"""Running one scenario from start to end: clients, run folder, engine, server, results."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedsim.base import progress
from fedsim.base.files import write_text
from fedsim.engine import open_grid, run_server
from fedsim.errors import FedsimError
from fedsim.protocol.run_config import RunConfig
from fedsim.results.bound import check_settings, seal
from fedsim.results.folder import RunFolder, create_run, locked, open_run, write_results
from fedsim.results.ledger import Ledger
from fedsim.results.ledger_reader import read_ledger
from fedsim.results.records import Failure
from fedsim.results.rows import Row
from fedsim.runner.binding import bind
from fedsim.runner.contents import Contents
from fedsim.runner.engine_choice import choose_engine, engine_settings, on_its_device
from fedsim.scenario.cells import stages
from fedsim.scenario.engine import EngineChoice
from fedsim.scenario.load import load_scenario
from fedsim.scenario.schema import Scenario
from fedsim.study.clients import client_keys

CLIENT_APP = "fedsim_clients.app:app"
SERVER_APP = "fedsim_server.app:app"


@dataclass(frozen=True)
class RunResult:
    """The result of a run: its folder, its rows in table order, and what failed."""

    folder: RunFolder
    rows: list[Row]
    failures: list[Failure]


def run_scenario(
    scenario: Scenario, out: Path | None = None, contents: Contents | None = None
) -> RunResult:
    """Run a scenario and write its run folder (`out`, or a new one under `runs/`).

    After an error or an interruption, what had finished is in the ledger and in `results.parquet`;
    `resume_run` continues from there.

    Args:
        scenario: the scenario to run.
        out: the run folder.
        contents: hashes the files of model and corpus, to which the run is bound; runs of the same
            files share it.

    Raises:
        FedsimError: for errors that concern the whole run: corpus, model, engine, folder.
    """
    clients = client_keys(scenario)
    return _run(create_run(out, scenario), scenario, clients, contents or Contents())


def resume_run(path: Path, engine: EngineChoice | None = None) -> RunResult:
    """Resume a run that was cut off, and return what it would have returned.

    Clients that finished are not computed again; those that failed are tried again.

    Args:
        path: the run folder.
        engine: replaces the engine of the scenario.

    Raises:
        FedsimError: as `run_scenario`, and if the folder is not a run folder, its run is still
            going on, or it was begun with another scenario or other packages or files: names what
            differs. Settings on which no result depends may differ.
    """
    folder = open_run(path)
    scenario = load_scenario(folder.scenario)
    if folder.ledger.is_file():
        with read_ledger(folder.ledger) as ledger:  # before another corpus is opened
            ledger.check()
            check_settings(ledger, folder.path, scenario)
    if engine is not None:
        scenario = scenario.model_copy(update={"engine": engine})
    return _run(folder, scenario, client_keys(scenario), Contents())


def _run(
    folder: RunFolder, scenario: Scenario, clients: Sequence[str], contents: Contents
) -> RunResult:
    """Run what is not yet in the ledger of a folder, on the scenario's engine."""
    scenario = on_its_device(scenario)
    kind = choose_engine([(scenario, len(clients))])

    def serve(run_config: RunConfig) -> None:
        config = run_config.to_flower()
        settings = engine_settings(scenario.engine, run_config.run_dir)
        with open_grid(kind, CLIENT_APP, clients, config, settings) as grid:
            run_server(SERVER_APP, grid, config)

    return record(folder, scenario, clients, kind, serve, contents)


def record(
    folder: RunFolder,
    scenario: Scenario,
    clients: Sequence[str],
    engine: str,
    serve: Callable[[RunConfig], None],
    contents: Contents | None = None,
) -> RunResult:
    """Run a scenario in a run folder by calling `serve`, and collect the results.

    They are collected even if `serve` raises. `engine` is the name of the engine in timing.json.
    The run is bound to its scenario and to its files, as `contents` hashes them.
    """
    scenario = on_its_device(scenario)
    shown = progress.current()
    shown.start(len(clients), stages(scenario))
    shown.stage("starting workers", len(clients))
    began, clock = datetime.now(UTC), time.monotonic()
    run_config = RunConfig(scenario.model_dump_json(), folder.path)
    with locked(folder), _bank(run_config.bank_dir):
        with Ledger(folder.ledger) as ledger:
            bind(ledger, folder, scenario, contents or Contents())
            ledger.begin_again()
        try:
            serve(run_config)
            if scenario.fleet is not None:  # before the rows are in memory too
                # It imports torch, which takes longer than all that must be done before Ray starts.
                from fedsim.runner.round import time_round

                time_round(folder, scenario, clients)
        finally:
            result = collect(folder, scenario)
            timing = {
                "began": began.isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - clock, 3),
                "engine": engine,
                "workers": 1 if engine == "inprocess" else scenario.engine.workers,
                "threads": scenario.engine.threads,
                "device": scenario.engine.device,
                "clients": len(clients),
            }
            write_text(folder.timing, json.dumps(timing, indent=2) + "\n")
            seal(folder)
    return result


def collect(folder: RunFolder, scenario: Scenario) -> RunResult:
    """Return the results in the ledger of a run, and write its `results.parquet`."""
    with Ledger(folder.ledger) as ledger:
        result = RunResult(folder, ledger.rows(), ledger.failures())
    write_results(folder, result.rows, scenario)
    return result


@contextmanager
def _bank(folder: Path) -> Iterator[None]:
    """Create the folder of packed layers, which workers read; it is removed when the run ends."""
    try:
        folder.mkdir(exist_ok=True)  # what a killed run left in it has the same bytes
    except OSError as error:
        raise FedsimError(
            f"{folder}: the run cannot be written here ({error.strerror}): check permissions and"
            f" free space, or name another --out folder"
        ) from error
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
