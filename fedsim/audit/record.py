"""The result of an audit, and its file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsim.base.files import write_text
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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}")
        return [
            Audited(
                settings=one["settings"],
                release=one["release"],
                findings=tuple(Finding(**finding) for finding in one["findings"]),
                claim=None if one["claim"] is None else Claim(**one["claim"]),
                rates=tuple(one["rates"]),
            )
            for one in content["audits"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise FedsimError(
            f"{path}: not an audit of this version of fedsim; run fedsim audit again"
        ) from error


def _plain(value: Any) -> Any:
    """Return a value with None in place of numbers that JSON cannot represent."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
