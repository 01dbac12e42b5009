"""The result of an audit, and its file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from fedsim.base.files import write_text
from fedsim.base.jsonfile import read_json_as
from fedsim.errors import FedsimError
from fedsim.privacy.attacks.result import Finding

FILE = "audit.json"
VERSION = 1


@dataclass(frozen=True)
class Claim:
    """The epsilon that is claimed of one release, and what was measured."""

    claimed: float
    """Epsilon between the two users that were measured; with Laplace noise, of a single layer."""
    at_least: float
    """Measured lower bound on epsilon, at 99.9 % confidence."""
    sentence: str

    @property
    def is_refuted(self) -> bool:
        """Whether the noise is weaker than claimed."""
        return self.at_least > self.claimed


@dataclass(frozen=True)
class Audited:
    """The audit of one scenario without a matrix."""

    settings: dict[str, Any]
    release: str
    findings: tuple[Finding, ...]
    claim: Claim | None
    """None for a release without noise."""
    rates: tuple[dict[str, Any], ...]
    """Per line of the run's table: name, rate in percent, its interval; empty without a run."""


def write_audit(path: Path, audits: Sequence[Audited]) -> None:
    """Write audits as JSON. Raises `FedsimError` if the file cannot be written."""
    content = {"version": VERSION, "audits": [asdict(audited) for audited in audits]}
    try:
        write_text(path, json.dumps(_plain(content), indent=2) + "\n")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FedsimError(
            f"{path}: the audit cannot be written ({reason}); choose another place"
        ) from error


def read_audit(path: Path) -> list[Audited]:
    """Return the audits of a file that `write_audit` wrote; empty if there is no such file.

    Raises `FedsimError` for another file.
    """
    if not path.is_file():
        return []
    content = read_json_as(_File, path, "run fedsim audit again")
    return [
        Audited(
            settings=one["settings"],
            release=one["release"],
            findings=tuple(_finding(finding) for finding in one["findings"]),
            claim=one["claim"],
            rates=tuple(one["rates"]),
        )
        for one in content["audits"]
    ]


def _finding(fields: Any) -> Finding:
    return Finding(**fields)


class _Finding(TypedDict):
    attack: str
    attribute: str
    release: str
    figure: str
    value: float | None
    low: float | None
    high: float | None
    chance: float | None
    n: int
    note: str


class _Audited(TypedDict):
    settings: dict[str, Any]
    release: str
    findings: list[_Finding]
    claim: Claim | None
    rates: list[dict[str, Any]]


class _File(TypedDict):
    version: Literal[1]
    audits: list[_Audited]


def _plain(value: Any) -> Any:
    """Return a value with None in place of numbers that JSON cannot represent."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
