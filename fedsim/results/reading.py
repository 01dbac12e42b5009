"""Reading the text files of a run folder, with errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedsim.base.yamltree import Problem, compose, plain
from fedsim.errors import FedsimError
from fedsim.scenario.schema import Scenario


def read_scenario(path: Path) -> tuple[str, Scenario]:
    """Return the text of a scenario.yaml and the scenario.

    The names in it are not looked up, so that a report needs neither the model nor torch.

    Raises:
        FedsimError: if the file cannot be read, or is not a scenario.
    """
    text = read_text(path)
    try:
        root = compose(text, str(path))
        return text, Scenario.model_validate(plain(root) if root is not None else None)
    except (Problem, ValidationError):
        raise FedsimError(
            f"{path}: this is not a scenario of this version of fedsim: run it again"
        ) from None


def read_json(path: Path, default: Any = None) -> Any:
    """Return what a JSON file holds, or `default`, unless it is None, if there is no such file.

    Raises:
        FedsimError: if the file cannot be read, or is not JSON.
    """
    if default is not None and not path.is_file():
        return default
    try:
        return json.loads(read_text(path))
    except ValueError:
        raise FedsimError(f"{path}: the file is damaged: restore it, or run again") from None


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        FedsimError: if it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FedsimError(
            f"{path}: the file cannot be read ({reason}): restore it, or allow reading"
        ) from error
