"""Running a matrix: each combination is a run of its own, and nothing is computed twice.

A result depends on only some of a scenario's settings: full precision not on the budget, a shuffled
plan not on the sensitivity measure. Results that were computed under the same relevant settings, in
this run or in another run of the scenario beside it, are copied.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsim.base import progress
from fedsim.base.files import write_text
from fedsim.engine import kept_running
from fedsim.errors import FedsimError
from fedsim.results.bound import CELL, cell_settings, seal
from fedsim.results.folder import MATRIX_INDEX, RunFolder, create_run
from fedsim.results.ledger import Ledger
from fedsim.results.ledger_reader import read_ledger
from fedsim.results.reading import read_index
from fedsim.results.records import Payload
from fedsim.results.rows import Plan, Row
from fedsim.runner.binding import write_binding
from fedsim.runner.engine_choice import engine_settings, on_its_device, with_chosen_engine
from fedsim.runner.result_key import ResultKeys
from fedsim.runner.single import RunResult, collect, run_scenario
from fedsim.scenario.cells import cells_of, sources
from fedsim.scenario.matrix import MatrixCell, expand
from fedsim.scenario.methods import FULL_PRECISION, NO_CLIENT, NOBODY, MethodSettings
from fedsim.scenario.quantization import QuantizationSettings
from fedsim.scenario.schema import Scenario
from fedsim.study.clients import keys_of_cells
from fedsim.study.devices import Devices


@dataclass(frozen=True)
class CellResult:
    """One combination of settings, and the result of its run."""

    settings: dict[str, Any]
    result: RunResult


@dataclass(frozen=True)
class _Known:
    """A method whose results are in a finished ledger."""

    ledger: Path
    method: MethodSettings


KEY = "key"
"""Kind of facts: the key of a result in a ledger -> its method in JSON."""


def run_matrix(scenario: Scenario, out: Path) -> list[CellResult]:
    """Run every combination in a folder below `out`, which must be empty; return their results.

    `out` gets matrix.json (the settings and the folder of each combination) and the run folders
    cells/001, ... To continue an interrupted matrix, run it again with an `out` beside the old one:
    finished results are copied from there.
    """
    cells = expand(scenario)
    folder = create_run(out, scenario)
    known = _known_beside(folder.path)
    index: list[dict[str, Any]] = []
    results = []
    # Every corpus is opened first: an error in the last combination shows before the first runs.
    counts = [len(keys) for keys in keys_of_cells([cell.scenario for cell in cells])]
    runs = list(zip((cell.scenario for cell in cells), counts, strict=True))
    engine = with_chosen_engine(runs, scenario).engine
    settings = engine_settings(on_its_device(scenario).engine, folder.path)
    keys = ResultKeys()
    with kept_running(engine.kind, max(counts), settings):
        for number, cell in enumerate(cells, start=1):
            name = f"cells/{number:03d}"
            progress.current().part(number, len(cells))
            result = _run_cell(cell, engine.kind, folder.path / name, known, keys)
            results.append(CellResult(cell.settings, result))
            index.append({"folder": name, "settings": cell.settings})
            write_text(folder.path / MATRIX_INDEX, json.dumps(index, indent=2) + "\n")
    return results


def computed(scenario: Scenario) -> list[Scenario]:
    """Return the combinations of a scenario that compute anything, with the methods that they
    compute: the others are copied from earlier combinations."""
    known: set[str] = set()
    scenarios, keys = [], ResultKeys()
    for cell in expand(scenario):
        methods = {keys.key(cell.scenario, m): m for m in _single_methods(cell.scenario)}
        missing = tuple(m for key, m in methods.items() if key not in known)
        if cell.scenario.fleet is None:
            known |= methods.keys()
        if missing:
            scenarios.append(cell.scenario.model_copy(update={"methods": missing}))
    return scenarios


def _run_cell(
    cell: MatrixCell, engine: str, place: Path, known: dict[str, _Known], keys: ResultKeys
) -> RunResult:
    """Run the methods of one combination that are not known yet, and copy the others.

    Adds what later combinations can copy to `known`, and to the ledger of the combination.
    """
    scenario = cell.scenario
    copied = known if scenario.fleet is None else {}  # the clock needs this very run's messages
    methods = {keys.key(scenario, method): method for method in _single_methods(scenario)}
    missing = tuple(method for key, method in methods.items() if key not in copied)
    if missing:
        chosen = scenario.engine.model_copy(update={"kind": engine})
        part = scenario.model_copy(update={"methods": missing, "engine": chosen})
        folder = run_scenario(part, place, keys.contents).folder
    else:
        folder = create_run(place, scenario)
    _copy([copied[key] for key in methods if key in copied], folder, scenario)
    write_text(folder.scenario, scenario.to_yaml())
    result = collect(folder, scenario)
    # A failed client may finish next time, and fleets share nothing.
    shared = {} if result.failures or scenario.fleet is not None else methods
    with Ledger(folder.ledger) as ledger:
        write_binding(ledger, scenario, keys.contents)
        named = [(key, method.model_dump_json()) for key, method in shared.items()]
        ledger.put_facts({KEY: named, CELL: cell_settings(cell.settings).items()})
    seal(folder)
    known.update({k: _Known(folder.ledger, m) for k, m in shared.items() if k not in known})
    return result


def _single_methods(scenario: Scenario) -> list[MethodSettings]:
    """Return the methods split up, so that each has one way to quantize and one source."""

    def one(word: str) -> tuple[str, ...]:
        return () if word == NOBODY else (word,)

    return [
        method.model_copy(
            update={
                "calibration": one(calibration),
                "rounding": one(rounding),
                "moments": one(moments),
                "runtime": one(runtime),
                "tuned_on": one(source),
            }
        )
        for method in scenario.methods
        for _, calibration, rounding, moments, runtime, source, _, _ in method.cells()
    ]


def _known_beside(run: Path) -> dict[str, _Known]:
    """Return key -> method of what finished in the other matrix runs in the same folder.

    A run of another version of fedsim, or a damaged one, has nothing to copy: what is wrong with it
    is not this run's matter.
    """
    known: dict[str, _Known] = {}
    for index in sorted(run.parent.glob(f"*/{MATRIX_INDEX}")):
        if index.parent != run:
            with suppress(FedsimError):
                for folder, _ in read_index(index):
                    known |= _known_in(RunFolder(index.parent / folder).ledger)
    return known


def _known_in(ledger: Path) -> dict[str, _Known]:
    if not ledger.is_file():
        return {}
    with read_ledger(ledger) as source:
        return {
            key: _Known(ledger, MethodSettings.model_validate_json(method))
            for key, method in source.facts(KEY).items()
        }


def _copy(methods: Sequence[_Known], folder: RunFolder, scenario: Scenario) -> None:
    """Write the rows of known methods to the ledger of a combination, with its budgets."""
    if not methods:
        return
    # Payloads come from a method that reads them: the others' may be of another kind of release.
    methods = sorted(methods, key=lambda known: not known.method.reads_profile)
    with Ledger(folder.ledger) as ledger:
        released: dict[str, list[Payload]] = {}
        for payload in ledger.payloads():
            released.setdefault(payload.client, []).append(payload)
        rows = {_place(row): row for row in ledger.rows()}
        plans = {_place(plan): plan for plan in ledger.plans()}
        sensed = {s.client: s for s in ledger.sensed()}
        for known in methods:
            with read_ledger(known.ledger) as source:
                copied = _rows_of(known.method, scenario.quantization, source.rows())
                rows |= copied
                plans |= {k: plan for plan in source.plans() if (k := _place(plan)) in copied}
                sensed = {s.client: s for s in source.sensed()} | sensed
                if known.method.reads_profile and not released:
                    for payload in source.payloads():
                        released.setdefault(payload.client, []).append(payload)
                    _copy_statement(known.ledger, folder)
        clients = sorted({client for client, _, _ in rows})
        devices = Devices(scenario, clients)
        for client in clients:
            ledger.finish_client(
                client,
                [
                    replace(row, budget_bytes=devices[client].budget_bytes)
                    for key, row in rows.items()
                    if key[0] == client
                ],
                [plan for key, plan in plans.items() if key[0] == client],
                sensed.get(client),
                payloads=released.get(client, ()),
            )


def _copy_statement(ledger: Path, folder: RunFolder) -> None:
    """Copy the privacy statement beside a ledger, unless the folder already has one."""
    statement = RunFolder(ledger.parent).privacy
    if statement.is_file() and not folder.privacy.is_file():
        write_text(folder.privacy, statement.read_text(encoding="utf-8"))


def _rows_of(
    method: MethodSettings, quantization: QuantizationSettings, rows: Sequence[Row]
) -> dict[tuple[str, str, str], Row]:
    """Return a method's rows by client, method and `tuned_on`."""
    if method.allocation == FULL_PRECISION:
        return {_place(row): row for row in rows if row.method == FULL_PRECISION}
    labels = {cell.label for cell in cells_of(method, quantization)}
    clients = sorted({row.client for row in rows})
    return {
        _place(row): row
        for row in rows
        if row.method in labels
        and row.tuned_on in (NO_CLIENT, *sources(method.tuned_on, row.client, clients))
    }


def _place(record: Row | Plan) -> tuple[str, str, str]:
    return record.client, record.method, record.tuned_on
