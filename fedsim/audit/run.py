"""Audits of a run folder, with each member of a matrix, or of a scenario without a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from fedsim.audit.attack import attack
from fedsim.audit.claim import measure_claim
from fedsim.audit.record import FILE, Audited, write_audit
from fedsim.audit.views import Payloads, View
from fedsim.audit.voices import Voices, open_voices
from fedsim.errors import FedsimError
from fedsim.privacy.bounds import Bounds
from fedsim.quant.allocation import Sizes
from fedsim.results.folder import RunFolder
from fedsim.results.ledger_reader import read_ledger
from fedsim.results.rates import lines_of
from fedsim.results.runs import Part, read_runs
from fedsim.scenario.cells import LOSSES, measure_of
from fedsim.scenario.matrix import expand
from fedsim.scenario.schema import Scenario
from fedsim.study.clients import client_keys
from fedsim.study.model import study_model
from fedsim.study.privacy_statement import read_statement
from fedsim.study.public_bounds import scenario_bounds
from fedsim.study.vocabulary import trimmed_models


def audit_run(path: Path, targets: int, *, write: bool = True) -> Iterator[Audited]:
    """Audit a run folder, or each member of a matrix; yield each result when it is done.

    Writes an audit.json into each member's folder, unless `write` is false.

    Raises:
        FedsimError: if `path` is not a run folder, nothing finished, or a file cannot be written.
    """
    (run,) = read_runs([path])
    known: dict[str, Voices] = {}
    for part in run.parts:
        if not part.rows:
            continue
        scenario = part.scenario
        voices = _voices(scenario, known)
        statement = read_statement(RunFolder(part.path).privacy)
        bounds = (
            statement.bounds if statement is not None else scenario_bounds(scenario, voices.model)
        )
        payloads = _payloads(part)
        keys = part.clients if not payloads else tuple(sorted(set(payloads) & set(part.clients)))
        if scenario.privacy.chosen.gives != "public" and not payloads:
            payloads = None  # no method of the run needed a release
        audited = _audit(part.settings, scenario, voices, bounds, keys, payloads, targets)
        audited = Audited(**{**vars(audited), "rates": tuple(_rates(part))})
        if write:
            write_audit(part.path / FILE, [audited])
        yield audited


def audit_scenario(scenario: Scenario, targets: int) -> Iterator[Audited]:
    """Audit what a scenario would release, without a run: its clients are sensed here.

    Raises `FedsimError` for a corpus or a model that cannot be opened, and for settings that do not
    fit them.
    """
    known: dict[str, Voices] = {}
    for cell in expand(scenario):
        keys = tuple(client_keys(cell.scenario))
        voices = _voices(cell.scenario, known)
        bounds = scenario_bounds(cell.scenario, voices.model)
        yield _audit(cell.settings, cell.scenario, voices, bounds, keys, None, targets)


def _audit(
    settings: Any,
    scenario: Scenario,
    voices: Voices,
    bounds: Bounds | None,
    keys: tuple[str, ...],
    payloads: dict[str, Payloads] | None,
    targets: int,
) -> Audited:
    if measure_of(scenario) == LOSSES:
        raise FedsimError(
            "methods: fedsim audit attacks profiles of one value per layer, and losses: own makes"
            " devices send tables; audit a scenario whose methods read sensitivities"
        )

    @cache
    def sizes_of(language: str | None) -> Sizes:
        study = study_model(scenario, voices.model(language))
        return trimmed_models(scenario, study).of(language).sizes

    view = View(scenario, voices, bounds, sizes_of, keys, payloads)
    claim = None
    if scenario.privacy.chosen.adds_noise:
        assert bounds is not None  # the release needs them
        claim = measure_claim(scenario, bounds)
    findings = tuple(attack(view, targets))
    return Audited(dict(settings), scenario.privacy.release, findings, claim, ())


def _voices(scenario: Scenario, known: dict[str, Voices]) -> Voices:
    """Return the speakers of a scenario; scenarios that sense alike share them."""
    settings = scenario.model_dump(mode="json", include={"seed", "model", "corpus"})
    clients = scenario.clients
    settings["clients"] = [clients.select, clients.min_clips, clients.limit]
    settings["measure"] = scenario.quantization.sensitivity
    key = json.dumps(settings, sort_keys=True)
    if key not in known:
        known[key] = open_voices(scenario)
    return known[key]


def _payloads(part: Part) -> dict[str, Payloads] | None:
    """Return client -> what the server received from it, one payload per round."""
    found: dict[str, list[bytes]] = {}
    with read_ledger(RunFolder(part.path).ledger) as ledger:
        for payload in ledger.payloads():
            found.setdefault(payload.client, []).append(payload.payload)
    return dict(found)


def _rates(part: Part) -> Iterator[dict[str, Any]]:
    for line in lines_of(part):
        rate = line.rate
        yield {
            "line": line.name,
            "kind": rate.kind,
            "rate": rate.value,
            "low": rate.low,
            "high": rate.high,
        }
