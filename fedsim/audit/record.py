"""What an audit found, and the file that keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsim.errors import FedsimError
from fedsim.privacy.attacks.result import Finding

FILE = "audit.json"
VERSION = 1


@dataclass(frozen=True)
class Claim:
    """What is claimed of one release, and what was measured."""

    claimed: float
    """Epsilon of what was told apart: of Laplace noise that of a single layer."""
    at_least: float
    """Epsilon that the releases show, at 99.9 % confidence."""
    sentence: str

    @property
    def is_refuted(self) -> bool:
        """Whether the noise is less than claimed."""
        return self.at_least > self.claimed


@dataclass(frozen=True)
class Audited:
    """What an audit found of one scenario without a matrix."""

    settings: dict[str, Any]
    release: str
    findings: tuple[Finding, ...]
    claim: Claim | None
    """None where no noise is added."""
    rates: tuple[dict[str, Any], ...]
    """Of each line of the run's table: name, rate in percent, its interval; empty without a run."""


def write_audit(path: Path, audits: Sequence[Audited]) -> None:
    """Write audits as JSON. Raises `FedsimError` if the file cannot be written."""
    said = {"version": VERSION, "audits": [asdict(audited) for audited in audits]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_plain(said), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FedsimError(f"{path}: the audit cannot be written here: {reason}") from error


def read_audit(path: Path) -> list[Audited]:
    """Return the audits of a file that `write_audit` wrote; empty if there is no such file.

    Raises `FedsimError` for another file.
    """
    if not path.is_file():
        return []
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["version"] != VERSION:
            raise ValueError(f"version {said['version']}")
        return [
            Audited(
                settings=one["settings"],
                release=one["release"],
                findings=tuple(Finding(**finding) for finding in one["findings"]),
                claim=None if one["claim"] is None else Claim(**one["claim"]),
                rates=tuple(one["rates"]),
            )
            for one in said["audits"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise FedsimError(
            f"{path}: this is no audit of this version of fedsim: make it again"
        ) from error


def _plain(value: Any) -> Any:
    """Return a value with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
