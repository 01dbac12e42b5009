"""Reading the text files of a run folder, with errors that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field, ValidationError
from typing_extensions import TypedDict

from fedsim.base.jsonfile import read_json_as
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
    except (Problem, ValidationError, RecursionError):
        raise FedsimError(
            f"{path}: this is not a scenario of this version of fedsim: run it again"
        ) from None


Count = Annotated[int, Field(ge=0, lt=2**53)]
Seconds = Annotated[float, Field(ge=0)]


class LayerFacts(TypedDict):
    """A layer in layers.json; `moments` is None where no method reads the public clips'."""

    name: str
    kind: str
    weights: Count
    moments: NotRequired[bool | None]


class Timing(TypedDict, total=False):
    """What timing.json holds."""

    began: str
    seconds: Seconds
    engine: str
    workers: Count | None
    threads: Count
    clients: Count
    calibration_seconds: dict[str, Seconds]
    """Calibration -> seconds, of a benchmark."""


def read_layers(path: Path) -> tuple[LayerFacts, ...]:
    """Return what layers.json holds; empty if there is no such file.

    Raises:
        FedsimError: if it cannot be read, or is damaged.
    """
    return tuple(_read_json(list[LayerFacts], path) if path.is_file() else ())


def read_timing(path: Path) -> Timing:
    """Return what timing.json holds, as `read_layers` does."""
    found: Timing = _read_json(Timing, path) if path.is_file() else {}
    return found


def read_versions(path: Path) -> dict[str, str]:
    """Return what versions.json holds, as `read_layers` does."""
    found: dict[str, str] = _read_json(dict[str, str], path) if path.is_file() else {}
    return found


def read_index(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the folder and the settings of each combination in a matrix.json.

    Raises:
        FedsimError: if it cannot be read, or is damaged.
    """
    return [(cell["folder"], cell["settings"]) for cell in _read_json(list[_IndexedCell], path)]


class _IndexedCell(TypedDict):
    folder: Annotated[str, Field(pattern=r"^cells/[0-9]+$")]
    settings: dict[str, Any]


def _read_json(kind: Any, path: Path) -> Any:
    return read_json_as(kind, path, "restore it, or run again")


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
    except UnicodeDecodeError:
        raise FedsimError(
            f"{path}: the file is damaged (it is not UTF-8 text): restore it, or run again"
        ) from None
