"""Running a scenario from start to end: clients, run folder, engine, server, table."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedsim import progress
from fedsim.assignment import Assignment
from fedsim.engine import EngineSettings, open_grid
from fedsim.results.folder import RunFolder, create_run, write_results
from fedsim.results.ledger import Failure, Ledger
from fedsim.results.rows import Row
from fedsim.scenario.clients import check_sources, client_budgets
from fedsim.scenario.schema import Scenario

CLIENT_APP = "clients.app:app"


@dataclass(frozen=True)
class RunResult:
    """What a run left: its folder, its rows in table order, and what failed."""

    folder: RunFolder
    rows: list[Row]
    failures: list[Failure]


def run_scenario(scenario: Scenario, out: Path | None = None) -> RunResult:
    """Run a scenario and write its run folder (`out`, or a new one under `runs/`).

    What finished before an error or an interruption is in the ledger and in `results.parquet`.
    Raises `FedsimError` for what no client could mend: corpus, model, engine, folder.
    """
    from flwr.app import Context, RecordDict

    from server.app import app as server_app

    clients = client_keys(scenario)
    engine = scenario.engine

    def serve(assignment: Assignment) -> None:
        run_config = assignment.to_run_config()
        settings = EngineSettings(
            engine.workers, engine.threads, engine.address, shared=assignment.run_dir
        )
        with open_grid(engine.kind, CLIENT_APP, clients, run_config, settings) as grid:
            context = Context(
                run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config
            )
            server_app(grid, context)

    return record(scenario, out, clients, serve)


def client_keys(scenario: Scenario) -> list[str]:
    """Return the keys of a scenario's clients, in sorted order.

    Raises `FedsimError` for a corpus that cannot be opened, and where the scenario's budgets and
    sources do not fit the clients that were found.
    """
    from fedsim.speech.corpus import open_clients

    clients = list(open_clients(scenario.corpus, scenario.clients, scenario.seed))
    check_sources(scenario, clients)
    client_budgets(scenario.clients, clients)
    return clients


def record(
    scenario: Scenario,
    out: Path | None,
    clients: Sequence[str],
    serve: Callable[[Assignment], None],
) -> RunResult:
    """Make the run folder, let `serve` run the scenario, and collect what it left there.

    Also where `serve` raises: what clients had finished by then is collected.
    """
    from server.study import stages

    folder = create_run(out, scenario)
    shown = progress.current()
    shown.start(len(clients), stages(scenario))
    shown.stage("starting workers", len(clients))
    began, clock = datetime.now(UTC), time.monotonic()
    assignment = Assignment(scenario.model_dump_json(), folder.path)
    assignment.bank_dir.mkdir()
    try:
        serve(assignment)
    finally:
        shutil.rmtree(assignment.bank_dir, ignore_errors=True)
        result = collect(folder, scenario)
        said = {
            "began": began.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - clock, 3),
            "engine": scenario.engine.kind,
            "workers": scenario.engine.workers,
            "threads": scenario.engine.threads,
        }
        folder.timing.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    return result


def collect(folder: RunFolder, scenario: Scenario) -> RunResult:
    """Return what the ledger of a run holds, and write its `results.parquet`."""
    with Ledger(folder.ledger) as ledger:
        result = RunResult(folder, ledger.rows(), ledger.failures())
    write_results(folder, result.rows, scenario)
    return result
