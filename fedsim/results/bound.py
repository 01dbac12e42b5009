"""What a ledger knows of the files beside it: the scenario of its results, and files that were
written whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedsim.errors import FedsimError
from fedsim.results.folder import RunFolder
from fedsim.results.ledger import Ledger
from fedsim.results.ledger_reader import LedgerReader
from fedsim.scenario.schema import Scenario

WITHOUT_EFFECT = ("name", "description", "engine", "save_models")
"""Settings on which no result depends, but those of the engine that change last digits, and
`engine.device`: which device computed is bound beside the packages (`run/binding.py`)."""
SETTING, CELL, SEALED = "setting", "cell", "sealed"
"""Kinds of facts: dotted key -> value in JSON, of the scenario and of what makes it one combination
of a matrix; name of a file -> its SHA-256."""
_MAX_SHOWN = 80
_MAX_NAMED = 3


def settings_of(scenario: Scenario) -> dict[str, str]:
    """Return every setting on which results depend: dotted key -> value in JSON.

    Items of lists are settings of their own, such as `methods[1].calibration`.
    """
    settings = scenario.model_dump(mode="json", exclude=set(WITHOUT_EFFECT))
    settings["engine"] = scenario.engine.digits
    return {key: json.dumps(value, ensure_ascii=False) for key, value in _flat(settings, "")}


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{key}[{number}]")
    else:
        yield key, value


def check_settings(ledger: LedgerReader, path: Path, scenario: Scenario) -> None:
    """Check that a scenario is the one of which a ledger holds the results.

    Args:
        ledger: of the run; nothing is checked if it is of a run that had not begun.
        path: the run folder, for the error.
        scenario: as its scenario.yaml is now.

    Raises:
        FedsimError: names the settings that differ, from what to what.
    """
    begun = ledger.facts(SETTING)
    if begun:
        now = settings_of(scenario)
        texts = [
            f"{key} was {_shown(begun.get(key))} and is {_shown(now.get(key))}"
            for key in dict.fromkeys([*now, *begun])
            if begun.get(key) != now.get(key)
        ]
        if texts:
            raise FedsimError(
                f"{path / 'scenario.yaml'}: this is not the scenario that the run was begun with"
                f" ({listed(texts)}): restore it, or begin a new run"
            )


def cell_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that make a combination: dotted key -> value in JSON."""
    return {key: json.dumps(value, sort_keys=True) for key, value in settings.items()}


def check_cell(ledger: LedgerReader, path: Path, settings: Mapping[str, Any]) -> None:
    """Check that a ledger holds the results of the combination that matrix.json says it does.

    Raises:
        FedsimError: names the settings of the ledger's own combination.
    """
    begun = ledger.facts(CELL)
    if begun and begun != cell_settings(settings):
        own = listed(f"{key} {_shown(value)}" for key, value in begun.items())
        raise FedsimError(
            f"{path}: these are the results of the combination {own}, and matrix.json calls them"
            " another: restore it, or run again"
        )


def listed(texts: Iterable[str]) -> str:
    """Return the first few texts, and how many more there are."""
    some = list(texts)
    more = [f"and {len(some) - _MAX_NAMED:,} more"] if some[_MAX_NAMED:] else []
    return "; ".join(some[:_MAX_NAMED] + more)


def _shown(text: str | None) -> str:
    if text is None:
        return "not there"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def seal(folder: RunFolder) -> None:
    """Write the hashes of the files that a run has written to its ledger.

    Raises:
        FedsimError: if one cannot be read, or the ledger cannot be written.
    """
    hashes = {file.name: _sha256(file) for file in _sealed(folder) if file.is_file()}
    with Ledger(folder.ledger) as ledger:
        ledger.put_facts({SEALED: hashes.items()})


def check_seal(folder: RunFolder, sealed: Mapping[str, str]) -> None:
    """Check the files of a run folder against their hashes; one that is gone is not missed here.

    Args:
        folder: of the run.
        sealed: the facts of the kind `SEALED` of its ledger.

    Raises:
        FedsimError: for a file that is not as the run wrote it.
    """
    for file in _sealed(folder):
        if file.name in sealed and file.is_file() and _sha256(file) != sealed[file.name]:
            raise FedsimError(
                f"{file}: the file is damaged, or was changed after the run wrote it: restore it,"
                " or remove it, or run again"
            )


def _sealed(folder: RunFolder) -> tuple[Path, ...]:
    return (
        *(folder.results, folder.timeline, folder.layers, folder.cost, folder.privacy),
        *(folder.timing, folder.versions),
    )


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FedsimError(
            f"{file}: the file cannot be read ({reason}): restore it, or allow reading"
        ) from error
