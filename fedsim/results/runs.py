"""Run folders as a report reads them: one part for a run, or for each combination of a matrix."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedsim.base.units import count_words
from fedsim.base.yamltree import Problem, compose, plain
from fedsim.errors import FedsimError
from fedsim.results.endings import endings, sentences
from fedsim.results.folder import MATRIX_INDEX, RunFolder
from fedsim.results.labels import BUDGET, RUN, settings_label
from fedsim.results.ledger import Ledger
from fedsim.results.records import Event, Failure, Release
from fedsim.results.rows import Plan, Row, Sensed
from fedsim.results.timed import TimedRound, read_round
from fedsim.scenario.matrix import expand
from fedsim.scenario.schema import Scenario

_MAX_DIFFERENCES = 3  # settings in which runs differ; more do not fit beside every number
_NO_RESULT_DEPENDS = ("name", "description", "engine", "save_models", "matrix")


@dataclass(frozen=True, eq=False)
class Part:
    """The results of one scenario: those of a run, or of one combination of a matrix.

    A part equals itself only, so that what was worked out of it can be found again.
    """

    path: Path
    settings: Mapping[str, Any]
    """What tells this part from the others of the report: dotted key -> value."""
    scenario: Scenario
    rows: tuple[Row, ...]
    plans: tuple[Plan, ...]
    sensed: tuple[Sensed, ...]
    failures: tuple[Failure, ...]
    events: tuple[Event, ...]
    releases: tuple[Release, ...]
    layers: tuple[dict[str, Any], ...]
    """Name, kind and number of weights of each layer; empty if layers.json is missing."""
    timed: TimedRound | None
    """The round on the virtual clock; None without a fleet, and if the run did not end."""
    timing: Mapping[str, Any]
    versions: Mapping[str, str]
    gaps: tuple[str, ...]
    """One sentence for each thing that is missing; empty if the run finished."""

    @cached_property
    def clients(self) -> tuple[str, ...]:
        """The clients that finished, sorted."""
        return tuple(sorted(self.rows_of))

    @cached_property
    def endings(self) -> Mapping[str, str]:
        """How each client ended that did: `fedsim.results.endings`."""
        return endings(self.clients, self.failures)

    @property
    def clients_are_a_sample(self) -> bool:
        """Whether others might have taken part: speakers are a sample, unless they were chosen by
        name; genders and languages are all there are."""
        scenario = self.scenario
        return scenario.corpus.group_by == "speaker" and scenario.clients.select is None

    @cached_property
    def rows_of(self) -> Mapping[str, Sequence[Row]]:
        """The rows of each client that finished."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.client, []).append(row)
        return found

    @cached_property
    def plan_of(self) -> Mapping[tuple[str, str, str], Plan]:
        """The plans by client, method and `tuned_on`."""
        return {(plan.client, plan.method, plan.tuned_on): plan for plan in self.plans}

    @property
    def label(self) -> str:
        """The settings in words; empty where there is only one part."""
        return settings_label(self.settings)

    @property
    def label_but_budget(self) -> str:
        """The settings in words without the budget, for where sizes are said anyway."""
        return settings_label({k: v for k, v in self.settings.items() if k != BUDGET})


@dataclass(frozen=True)
class Run:
    """A run folder that was asked for, with its parts."""

    path: Path
    name: str
    """What the report calls it: the scenario's name, with the folder's where that is not enough."""
    scenario: Scenario
    yaml: str
    """The text of scenario.yaml."""
    parts: tuple[Part, ...]
    gaps: tuple[str, ...]


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run folders, in the order given; where there are several, parts say of which they are.

    Raises:
        FedsimError: for a folder that is missing or is not a run folder, and if nothing finished
            in any of them.
    """
    runs = [_read_run(Path(path)) for path in paths]
    parts = [part for run in runs for part in run.parts]
    if not any(part.rows for part in parts):
        reasons = [f.reason for part in parts for f in part.failures]
        because = f"; the first failure: {reasons[0]}" if reasons else ""
        names = ", ".join(str(path) for path in paths)
        raise FedsimError(
            f"{names}: no client finished, so there is nothing to report: run it again{because}"
        )
    return _distinct(runs) if len(runs) > 1 else runs


def _read_run(path: Path) -> Run:
    if not path.exists():
        raise FedsimError(f"{path}: there is no such folder: check the path")
    if not (path / "scenario.yaml").is_file():
        raise FedsimError(
            f"{path}: this is not a run folder, for it has no scenario.yaml: name the folder that"
            " fedsim run printed"
        )
    text, scenario = _read_scenario(path / "scenario.yaml")
    if scenario.matrix or (path / MATRIX_INDEX).is_file():
        parts, gaps = _read_cells(path, scenario)
    else:
        parts = [_read_part(path, {}, scenario)]
        gaps = list(parts[0].gaps)
    return Run(path, scenario.name, scenario, text, tuple(parts), tuple(gaps))


def _read_cells(path: Path, scenario: Scenario) -> tuple[list[Part], list[str]]:
    """Read every combination that was begun; say what is missing."""
    found: dict[str, Mapping[str, Any]] = {}
    if (path / MATRIX_INDEX).is_file():
        found = {cell["folder"]: cell["settings"] for cell in _read_json(path / MATRIX_INDEX)}
    cells = expand(scenario) if scenario.matrix else ()
    for number, cell in enumerate(cells, start=1):  # one that was interrupted is not in the index
        found.setdefault(f"cells/{number:03d}", cell.settings)
    begun = {f: s for f, s in found.items() if (path / f / "scenario.yaml").is_file()}
    parts = [
        _read_part(path / folder, settings, _read_scenario(path / folder / "scenario.yaml")[1])
        for folder, settings in sorted(begun.items())
    ]
    gaps = [f"{settings_label(part.settings)}: {gap}" for part in parts for gap in part.gaps]
    if len(begun) < len(found):
        gaps.append(f"{len(found) - len(begun)} of {len(found)} combinations were not begun.")
    return parts, gaps


def _read_part(path: Path, settings: Mapping[str, Any], scenario: Scenario) -> Part:
    folder = RunFolder(path)
    part = Part(
        path=path,
        settings=settings,
        scenario=scenario,
        **_read_ledger(folder.ledger),
        layers=tuple(_read_json(folder.layers, [])),
        timed=read_round(folder.timeline) if folder.timeline.is_file() else None,
        timing=_read_json(folder.timing, {}),
        versions=_read_json(folder.versions, {}),
        gaps=(),
    )
    return replace(part, gaps=tuple(_gaps(part, folder)))


def _read_ledger(path: Path) -> dict[str, Any]:
    if not path.is_file():  # opening a ledger would make it
        return dict.fromkeys(("rows", "plans", "sensed", "failures", "events", "releases"), ())
    with Ledger(path) as ledger:
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
    yield from (f"{said}." for said in sentences(part.endings.values()))
    missing = _expected(part.scenario) - len(part.endings)
    if missing > 0 and folder.results.is_file():
        yield f"{count_words(missing, 'client')} did not finish."


def _expected(scenario: Scenario) -> int:
    """Return the number of clients as far as the scenario alone tells it, else 0."""
    clients, people = scenario.clients, scenario.corpus.population
    if clients.select is not None:
        found = len(clients.select)
    elif people is not None and scenario.corpus.group_by == "speaker":
        found = people.speakers
    else:
        return 0
    return min(found, clients.limit or found)


def _distinct(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with names that differ, and parts whose settings say what differs."""
    names = [run.scenario.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.scenario.name} {run.path.resolve().name}" for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    keys = [key for key in differences(runs) if key.split(".")[0] not in _NO_RESULT_DEPENDS]
    keys = keys if len(keys) <= _MAX_DIFFERENCES else []
    return [
        replace(
            run,
            name=name,
            parts=tuple(
                replace(p, settings=_own_settings(name, p.settings, run, keys)) for p in run.parts
            ),
        )
        for run, name in zip(runs, names, strict=True)
    ]


def _own_settings(
    name: str, settings: Mapping[str, Any], run: Run, keys: Sequence[str]
) -> dict[str, Any]:
    values = flat(run.scenario)
    return {RUN: name, **{key: values.get(key) for key in keys}, **settings}


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the settings in which runs differ: dotted key -> the value in each run."""
    every = [flat(run.scenario) for run in runs]
    keys = dict.fromkeys(key for values in every for key in values)
    found = {key: [values.get(key) for values in every] for key in keys}
    return {k: v for k, v in found.items() if any(x != v[0] for x in v)}


def flat(scenario: Scenario) -> dict[str, Any]:
    """Return a scenario's settings by dotted key; lists are values."""

    def walk(data: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in data.items():
            if isinstance(value, dict) and value and prefix + key != "matrix":
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(walk(scenario.model_dump(mode="json"), ""))


def _read_scenario(path: Path) -> tuple[str, Scenario]:
    """Read a scenario without looking up its names: reports need no model, and no torch."""
    text = _read(path)
    try:
        root = compose(text, str(path))
        return text, Scenario.model_validate(plain(root) if root is not None else None)
    except (Problem, ValidationError):
        raise FedsimError(
            f"{path}: this is not a scenario of this version of fedsim: run it again"
        ) from None


def _read_json(path: Path, default: Any = None) -> Any:
    if default is not None and not path.is_file():
        return default
    try:
        return json.loads(_read(path))
    except ValueError:
        raise FedsimError(f"{path}: the file is damaged: restore it, or run again") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FedsimError(f"{path}: the file cannot be read: {reason}") from error
