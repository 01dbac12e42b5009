"""Loading, running and opening studies."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fedsim.api.result import StudyResult
from fedsim.base import progress as shown
from fedsim.errors import FedsimError
from fedsim.results.folder import new_run_path
from fedsim.results.runs import read_runs
from fedsim.runner.study import run_study
from fedsim.scenario import Scenario, find_scenario, list_scenarios, load_scenario


def load_study(study: str | os.PathLike[str], /, **settings: Any) -> Scenario:
    """Return a study from a YAML file, or from a name of `list_studies`, with other settings.

    Args:
        study: the file, or the name.
        settings: replace keys of the study, as `--set` does: `seed=3`; `__` stands for a dot, and
            items of a list are counted from 0 (`clients__budget_mb=0.9`,
            `methods__0__calibration=["cosine"]`).

    Returns:
        The checked, frozen study. `to_yaml()` is its text with every default.

    Raises:
        FedsimError: the study is not found, or has mistakes, which are listed line by line.

    >>> import fedsim
    >>> study = fedsim.load_study("quickstart", clients__budget_mb=0.9, seed=3)
    >>> study.name, study.clients.budget_mb, study.seed
    ('quickstart', 0.9, 3)
    >>> fedsim.load_study("quickstart", sede=3)
    Traceback (most recent call last):
    fedsim.errors.FedsimError: --set sede=3: unknown key 'sede': did you mean 'seed'?
    """
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    overrides = [f"{key}={_in_yaml(key, value)}" for key, value in dotted.items()]
    return load_scenario(find_scenario(Path(study)), overrides)


def list_studies() -> dict[str, str]:
    """Return the name of each known study with the first line of its description.

    >>> import fedsim
    >>> "quickstart" in fedsim.list_studies()
    True
    """
    return dict(list_scenarios())


def run(
    study: Scenario | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    report: bool = True,
    progress: bool = True,
) -> StudyResult:
    """Run a study and return its result.

    The engine is a setting of the study: `load_study("quickstart", engine__kind="ray",
    engine__workers=4)`.

    Args:
        study: from `load_study`, or what it takes.
        out: the run folder, empty or new; None for `runs/<name>/<UTC time>`.
        report: whether to write `report.html` into the run folder.
        progress: whether to show the progress, in a notebook or on a terminal.

    Raises:
        FedsimError: for errors that concern the whole run (corpus, model, engine, folder), and if
            no client finished.

    >>> import fedsim
    >>> small = dict(corpus__population__speakers=2, corpus__test_clips=1, methods=["fp32"])
    >>> study = fedsim.load_study("quickstart", **small, engine__kind="inprocess")
    >>> result = fedsim.run(study, "first", report=False)
    >>> result
    <StudyResult quickstart: 2 clients, 1 method, in first>
    """
    scenario = study if isinstance(study, Scenario) else load_study(study)
    folder = Path(out).expanduser() if out is not None else new_run_path(scenario.name)
    return _run(scenario, folder, report, progress, resume=False)


def resume(
    folder: str | os.PathLike[str], *, report: bool = True, progress: bool = True
) -> StudyResult:
    """Continue a run that was cut off, and return the result that it would have had.

    Args:
        folder: the run folder; not of a matrix, which is run again instead.
        report: whether to write `report.html` into the run folder.
        progress: whether to show the progress, in a notebook or on a terminal.

    Raises:
        FedsimError: as `run`; also if the folder is not a run folder, or its run began with other
            settings, packages or files.
    """
    path = Path(folder).expanduser()
    return _run(begun_scenario(path), path, report, progress, resume=True)


def open_run(folder: str | os.PathLike[str]) -> StudyResult:
    """Return the result in a run folder, also of a run that has not ended yet.

    Raises:
        FedsimError: it is not a run folder, or no client has finished.

    >>> import fedsim
    >>> fedsim.open_run("elsewhere")
    Traceback (most recent call last):
    fedsim.errors.FedsimError: elsewhere: folder not found: check the path
    """
    (run,) = read_runs([Path(folder).expanduser()])
    return StudyResult(run)


def begun_scenario(folder: Path) -> Scenario:
    """Return the scenario of a run that is to be resumed.

    Raises:
        FedsimError: the folder is not a run folder, or it is that of a matrix.
    """
    from fedsim.results.folder import open_run as open_folder

    scenario = load_scenario(open_folder(folder).scenario)
    if scenario.matrix:
        raise FedsimError(
            f"{folder}: a matrix of runs cannot be resumed: run its scenario again with"
            f" --out beside it, and the results that finished are reused"
        )
    return scenario


def _run(
    scenario: Scenario, folder: Path, report: bool, progress: bool, *, resume: bool
) -> StudyResult:
    from rich.console import Console  # takes long to import

    with shown.show(Console(stderr=True)) if progress else nullcontext():
        run_study(scenario, folder, resume=resume)
    result = open_run(folder)
    if report:
        result.report()
    return result


def _in_yaml(key: str, value: Any) -> str:
    """Return a value as YAML on one line; JSON is a part of YAML."""
    try:
        return json.dumps(value, default=os.fspath, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise FedsimError(
            f"{key}: a value of type {type(value).__name__} cannot be written in YAML ({error}):"
            f" give numbers, texts, lists and dicts"
        ) from None
