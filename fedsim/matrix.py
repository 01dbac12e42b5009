"""Running a matrix: each combination is a run of its own, and nothing is computed twice.

A result depends on few of a scenario's settings: full precision on no budget, a shuffled plan on no
sensitivity measure. What was computed under the same relevant settings, in this run or in another
of the same scenario beside it, is copied.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsim.base import progress
from fedsim.engine import EngineSettings, kept_running
from fedsim.results.folder import RELEVANT_VERSIONS, RunFolder, create_run, versions
from fedsim.results.ledger import Ledger, Payload
from fedsim.results.rows import Plan, Row
from fedsim.run import CLIENT_APP, RunResult, client_keys, collect, run_scenario
from fedsim.scenario import Devices
from fedsim.scenario.matrix import expand
from fedsim.scenario.schema import FULL_PRECISION, MethodSettings, Scenario
from server.cells import NOBODY, SENSITIVITY_FREE, cells_of, sources

INDEX = "matrix.json"
_DATA_FILES = ("metadata.csv", "model.safetensors", "config.json")


@dataclass(frozen=True)
class CellResult:
    """One combination of settings, and what its run left."""

    settings: dict[str, Any]
    result: RunResult


@dataclass(frozen=True)
class _Known:
    """A method whose results lie in a finished ledger."""

    ledger: Path
    method: MethodSettings


def run_matrix(scenario: Scenario, out: Path) -> list[CellResult]:
    """Run every combination below `out`, which must be empty; return what each left.

    `out` gets matrix.json (the settings and the folder of each combination) and cells/001, ...,
    each a run folder. An interrupted matrix is continued by running it again: what finished is
    found beside the new run and copied.
    """
    cells = expand(scenario)
    folder = create_run(out, scenario)
    known = _found_beside(folder.path)
    index: list[dict[str, Any]] = []
    results = []
    engine = scenario.engine
    settings = EngineSettings(engine.workers, engine.threads, engine.address, shared=folder.path)
    # Every corpus is opened first: a mistake in the last combination is told before the first runs.
    clients = max(len(client_keys(cell.scenario)) for cell in cells)
    with kept_running(engine.kind, CLIENT_APP, clients, settings):
        for number, cell in enumerate(cells, start=1):
            name = f"cells/{number:03d}"
            progress.current().part(number, len(cells))
            result, keys = _run_cell(cell.scenario, folder.path / name, known)
            results.append(CellResult(cell.settings, result))
            index.append({"folder": name, "settings": cell.settings, "keys": keys})
            (folder.path / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return results


def computed(scenario: Scenario) -> list[Scenario]:
    """Return what the combinations of a scenario have to compute: each that does not take all its
    results over from earlier ones, with the methods that it computes itself."""
    known: set[str] = set()
    found = []
    for cell in expand(scenario):
        methods = {_key(cell.scenario, m): m for m in _single_methods(cell.scenario)}
        missing = tuple(m for key, m in methods.items() if key not in known)
        if cell.scenario.fleet is None:
            known |= methods.keys()
        if missing:
            found.append(cell.scenario.model_copy(update={"methods": missing}))
    return found


def _run_cell(
    scenario: Scenario, place: Path, known: dict[str, _Known]
) -> tuple[RunResult, dict[str, dict[str, Any]]]:
    """Run what is not known yet of one combination, and copy the rest."""
    if scenario.fleet is not None:
        known = {}  # its clock needs the messages of this very run
    methods = {_key(scenario, method): method for method in _single_methods(scenario)}
    missing = tuple(method for key, method in methods.items() if key not in known)
    if missing:
        folder = run_scenario(scenario.model_copy(update={"methods": missing}), place).folder
    else:
        folder = create_run(place, scenario)
    _copy([known[key] for key in methods if key in known], folder, scenario)
    folder.scenario.write_text(scenario.to_yaml(), encoding="utf-8")
    result = collect(folder, scenario)
    if result.failures or scenario.fleet is not None:
        return result, {}  # a client that failed may finish another time; a fleet shares nothing
    ledger = result.folder.ledger
    known.update({k: _Known(ledger, m) for k, m in methods.items() if k not in known})
    return result, {k: m.model_dump(mode="json") for k, m in methods.items()}


def _single_methods(scenario: Scenario) -> list[MethodSettings]:
    """Return the methods one by one: a calibration and a source each."""
    return [
        method.model_copy(
            update={
                "calibration": () if calibration == NOBODY else (calibration,),
                "tuned_on": () if source == NOBODY else (source,),
            }
        )
        for method in scenario.methods
        for _, calibration, source, _ in method.cells()
    ]


def _key(scenario: Scenario, method: MethodSettings) -> str:
    """Return a hash of everything that a method's results depend on."""
    said = scenario.model_dump(
        mode="json",
        include={
            "seed",
            "model",
            "corpus",
            "clients",
            "quantization",
            "study",
            "engine",
            "faults",
            "retries",
        },
    )
    said["engine"] = {"threads": said["engine"]["threads"]}
    said["privacy"] = scenario.privacy.relevant()
    said["method"] = method.model_dump(mode="json")
    found = versions()
    said["versions"] = {name: found[name] for name in RELEVANT_VERSIONS}
    corpus, people = scenario.corpus, scenario.corpus.population
    places = (scenario.model.id, corpus.path, corpus.speakers, people.sentences if people else None)
    said["files"] = [_stamp(place) for place in places]
    if _is_blind(method):
        del said["quantization"]["sensitivity"], said["privacy"]
    if method.allocation == FULL_PRECISION:
        del said["quantization"], said["corpus"]["tuning_clips"]
        del said["clients"]["budget_mb"], said["clients"]["bit_depths"]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _stamp(place: str | None) -> list[tuple[str, int, int]]:
    """Return size and time of the files that tell whether a local file or folder has changed."""
    files = [Path(place), *(Path(place) / name for name in _DATA_FILES)] if place else []
    return [
        (file.name, (stat := os.stat(file)).st_size, stat.st_mtime_ns)
        for file in files
        if file.is_file()
    ]


def _found_beside(run: Path) -> dict[str, _Known]:
    """Return what finished in the other runs in the same folder."""
    known = {}
    for index in sorted(run.parent.glob(f"*/{INDEX}")):
        if index.parent == run:
            continue
        for cell in json.loads(index.read_text(encoding="utf-8")):
            ledger = RunFolder(index.parent / cell["folder"]).ledger
            for key, method in cell["keys"].items():
                if ledger.is_file():
                    known[key] = _Known(ledger, MethodSettings.model_validate(method))
    return known


def _copy(found: Sequence[_Known], folder: RunFolder, scenario: Scenario) -> None:
    """Write the rows of known methods into the ledger of a combination, with its budgets."""
    if not found:
        return
    # What clients told is taken from a method that reads it: others may be of another release.
    found = sorted(found, key=lambda one: _is_blind(one.method))
    with Ledger(folder.ledger) as ledger:
        told: dict[str, list[Payload]] = {}
        for payload in ledger.payloads():
            told.setdefault(payload.client, []).append(payload)
        rows = {(r.client, r.method, r.tuned_on): r for r in ledger.rows()}
        plans = {(p.client, p.method, p.tuned_on): p for p in ledger.plans()}
        sensed = {s.client: s for s in ledger.sensed()}
        for one in found:
            with Ledger(one.ledger) as source:
                taken = _rows_of(one.method, source.rows())
                rows |= taken
                plans |= {k: p for p in source.plans() if (k := _place(p)) in taken}
                sensed = {s.client: s for s in source.sensed()} | sensed
                if not _is_blind(one.method) and not told:
                    for payload in source.payloads():
                        told.setdefault(payload.client, []).append(payload)
                    _copy_promise(one.ledger, folder)
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
                payloads=told.get(client, ()),
            )


def _is_blind(method: MethodSettings) -> bool:
    return method.allocation in (FULL_PRECISION, *SENSITIVITY_FREE)


def _copy_promise(ledger: Path, folder: RunFolder) -> None:
    """Copy what was promised beside a ledger, unless the folder has a promise of its own."""
    said = RunFolder(ledger.parent).privacy
    if said.is_file() and not folder.privacy.is_file():
        folder.privacy.write_text(said.read_text(encoding="utf-8"), encoding="utf-8")


def _rows_of(method: MethodSettings, rows: Sequence[Row]) -> dict[tuple[str, str, str], Row]:
    """Return the rows that a method made, by client, label and source."""
    if method.allocation == FULL_PRECISION:
        return {_place(row): row for row in rows if row.method == FULL_PRECISION}
    labels = {cell.label for cell in cells_of(method)}
    clients = sorted({row.client for row in rows})
    return {
        _place(row): row
        for row in rows
        if row.method in labels
        and row.tuned_on in (NOBODY, *sources(method.tuned_on, row.client, clients))
    }


def _place(made: Row | Plan) -> tuple[str, str, str]:
    return made.client, made.method, made.tuned_on
