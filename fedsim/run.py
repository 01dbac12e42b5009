"""Running a scenario from start to end: clients, run folder, engine, server, table."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedsim import progress
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

    from fedsim.speech.corpus import open_clients
    from server.app import app as server_app
    from server.study import stages

    clients = list(open_clients(scenario.corpus, scenario.clients, scenario.seed))
    check_sources(scenario, clients)
    client_budgets(scenario.clients, clients)
    folder = create_run(out, scenario)
    shown = progress.current()
    shown.start(len(clients), stages(scenario))
    shown.stage("starting workers", len(clients))
    engine, began, clock = scenario.engine, datetime.now(UTC), time.monotonic()
    settings = EngineSettings(engine.workers, engine.threads, engine.address)
    with _bank(folder.path) as bank:
        run_config: dict[str, str | int | float | bool] = {
            "scenario": scenario.model_dump_json(),
            "run-dir": str(folder.path),
            "bank-dir": str(bank),
        }
        try:
            with open_grid(engine.kind, CLIENT_APP, clients, run_config, settings) as grid:
                context = Context(
                    run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config
                )
                server_app(grid, context)
        finally:
            result = collect(folder, scenario)
            said = {
                "began": began.isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - clock, 3),
                "engine": engine.kind,
                "workers": engine.workers,
                "threads": engine.threads,
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
def _bank(run_dir: Path) -> Iterator[Path]:
    """The folder of packed layers, which workers read; it goes when the run ends."""
    folder = run_dir / "bank"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
