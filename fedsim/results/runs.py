"""Run folders, read back: one part per run, or per combination of a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedsim.base.units import count_words
from fedsim.errors import FedsimError
from fedsim.results.bound import SEALED, check_cell, check_seal, check_settings
from fedsim.results.differences import distinguishing_settings, run_names
from fedsim.results.endings import endings, sentences
from fedsim.results.folder import MATRIX_INDEX, RunFolder
from fedsim.results.labels import BUDGET, RUN, settings_label
from fedsim.results.ledger_reader import read_ledger
from fedsim.results.reading import (
    LayerFacts,
    Timing,
    read_index,
    read_layers,
    read_scenario,
    read_timing,
    read_versions,
)
from fedsim.results.records import Event, Failure, Release
from fedsim.results.rows import Plan, Row, Sensed
from fedsim.results.timed import TimedRound, read_round
from fedsim.scenario.matrix import expand
from fedsim.scenario.schema import Scenario


@dataclass(frozen=True, eq=False)
class Part:
    """The results of one run, or of one combination of a matrix.

    Parts are compared by identity, so that what is computed from one can be cached.
    """

    path: Path
    settings: Mapping[str, Any]
    """What tells this part from the others: dotted key -> value."""
    scenario: Scenario
    rows: tuple[Row, ...]
    plans: tuple[Plan, ...]
    sensed: tuple[Sensed, ...]
    failures: tuple[Failure, ...]
    events: tuple[Event, ...]
    releases: tuple[Release, ...]
    layers: tuple[LayerFacts, ...]
    """Name, kind and number of weights of each layer; empty if layers.json is missing."""
    timed: TimedRound | None
    """The round on the virtual clock; None without a fleet, or if the run did not end."""
    timing: Timing
    versions: Mapping[str, str]
    gaps: tuple[str, ...]
    """One sentence for each thing that is missing; empty if every client finished."""

    @cached_property
    def clients(self) -> tuple[str, ...]:
        """The clients that finished, sorted."""
        return tuple(sorted(self.rows_of))

    @cached_property
    def endings(self) -> Mapping[str, str]:
        """How each client that was reached ended, see `fedsim.results.endings`."""
        return endings(self.clients, self.failures)

    @property
    def clients_are_a_sample(self) -> bool:
        """Whether other clients might have taken part instead.

        Speakers are a sample unless they were chosen by name; genders and languages are not.
        """
        scenario = self.scenario
        return scenario.corpus.group_by == "speaker" and scenario.clients.select is None

    @cached_property
    def rows_of(self) -> Mapping[str, Sequence[Row]]:
        """The rows of each client that finished."""
        rows: dict[str, list[Row]] = {}
        for row in self.rows:
            rows.setdefault(row.client, []).append(row)
        return rows

    @cached_property
    def plan_of(self) -> Mapping[tuple[str, str, str], Plan]:
        """The plans by client, method and `tuned_on`."""
        return {(plan.client, plan.method, plan.tuned_on): plan for plan in self.plans}

    @property
    def label(self) -> str:
        """The settings in words; empty if there is only one part."""
        return settings_label(self.settings)

    @property
    def label_but_budget(self) -> str:
        """The settings in words without the budget, to stand beside a size."""
        return settings_label({k: v for k, v in self.settings.items() if k != BUDGET})


@dataclass(frozen=True)
class Run:
    """One run folder, with its parts."""

    path: Path
    name: str
    """The scenario's name, with the folder's name or path if other runs share it."""
    scenario: Scenario
    yaml: str
    """The text of scenario.yaml."""
    parts: tuple[Part, ...]
    gaps: tuple[str, ...]


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run folders, in the order given; of several, the settings of parts name the run.

    Raises:
        FedsimError: for a folder that is missing or is not a run folder, and if no client
            finished in any of them.
    """
    runs = [_read_run(Path(path)) for path in paths]
    parts = [part for run in runs for part in run.parts]
    if not any(part.rows for part in parts):
        reasons = [f.reason for part in parts for f in part.failures]
        because = f" (the first failure: {reasons[0].rstrip('.')})" if reasons else ""
        names = ", ".join(str(path) for path in paths)
        raise FedsimError(
            f"{names}: no client finished, so there is nothing to report{because}: run it again"
        )
    return _distinguished(runs) if len(runs) > 1 else runs


def _read_run(path: Path) -> Run:
    if not path.exists():
        raise FedsimError(f"{path}: folder not found: check the path")
    if not (path / "scenario.yaml").is_file():
        raise FedsimError(
            f"{path}: this is not a run folder (it lacks scenario.yaml): name the folder that"
            " fedsim run printed"
        )
    text, scenario = read_scenario(path / "scenario.yaml")
    if scenario.matrix or (path / MATRIX_INDEX).is_file():
        parts, gaps = _read_cells(path, scenario)
    else:
        parts = [_read_part(path, {}, scenario)]
        gaps = list(parts[0].gaps)
    return Run(path, scenario.name, scenario, text, tuple(parts), tuple(gaps))


def _read_cells(path: Path, scenario: Scenario) -> tuple[list[Part], list[str]]:
    """Read every combination that was begun; return the parts, and what is missing."""
    settings_of: dict[str, Mapping[str, Any]] = {}  # by folder
    if (path / MATRIX_INDEX).is_file():
        settings_of.update(read_index(path / MATRIX_INDEX))
    cells = expand(scenario) if scenario.matrix else ()
    for number, cell in enumerate(cells, start=1):  # an interrupted one is not in the index
        settings_of.setdefault(f"cells/{number:03d}", cell.settings)
    begun = {f: s for f, s in settings_of.items() if (path / f / "scenario.yaml").is_file()}
    parts = [
        _read_part(path / folder, settings, read_scenario(path / folder / "scenario.yaml")[1])
        for folder, settings in sorted(begun.items())
    ]
    gaps = [f"{settings_label(part.settings)}: {gap}" for part in parts for gap in part.gaps]
    if len(begun) < len(settings_of):
        missing = len(settings_of) - len(begun)
        gaps.append(f"{missing} of {len(settings_of)} combinations were not begun.")
    return parts, gaps


def _read_part(path: Path, settings: Mapping[str, Any], scenario: Scenario) -> Part:
    folder = RunFolder(path)
    part = Part(
        path=path,
        settings=settings,
        scenario=scenario,
        **_read_ledger(folder, scenario, settings),
        layers=read_layers(folder.layers),
        timed=read_round(folder.timeline) if folder.timeline.is_file() else None,
        timing=read_timing(folder.timing),
        versions=read_versions(folder.versions),
        gaps=(),
    )
    return replace(part, gaps=tuple(_gaps(part, folder)))


def _read_ledger(
    folder: RunFolder, scenario: Scenario, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the ledger of a part holds, if it belongs to the files beside it."""
    if not folder.ledger.is_file():
        return dict.fromkeys(("rows", "plans", "sensed", "failures", "events", "releases"), ())
    with read_ledger(folder.ledger) as ledger:
        ledger.check()
        check_settings(ledger, folder.path, scenario)
        check_cell(ledger, folder.path, settings)
        check_seal(folder, ledger.facts(SEALED))
        return {
            "rows": tuple(ledger.rows()),
            "plans": tuple(ledger.plans()),
            "sensed": tuple(ledger.sensed()),
            "failures": tuple(ledger.failures()),
            "events": tuple(ledger.events()),
            "releases": tuple(ledger.all_releases()),
        }


def _gaps(part: Part, folder: RunFolder) -> Iterator[str]:
    if not folder.results.is_file():
        done = count_words(len(part.clients), "client")
        yield f"The run has not ended, or was cut off; {done} finished so far."
    yield from (f"{sentence}." for sentence in sentences(part.endings.values()))
    missing = _expected(part.scenario) - len(part.endings)
    if missing > 0 and folder.results.is_file():
        yield f"{count_words(missing, 'client')} did not finish."


def _expected(scenario: Scenario) -> int:
    """Return the number of clients if the scenario alone determines it, else 0."""
    clients, people = scenario.clients, scenario.corpus.population
    if clients.select is not None:
        number = len(clients.select)
    elif people is not None and scenario.corpus.group_by == "speaker":
        number = people.speakers
    else:
        return 0
    return min(number, clients.limit or number)


def _distinguished(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with distinct names, and with parts whose settings tell them apart."""
    names = run_names([(run.path, run.scenario) for run in runs])
    settings = distinguishing_settings([run.scenario for run in runs])
    return [
        replace(
            run,
            name=name,
            parts=tuple(
                replace(part, settings={RUN: name, **own, **part.settings}) for part in run.parts
            ),
        )
        for run, name, own in zip(runs, names, settings, strict=True)
    ]
