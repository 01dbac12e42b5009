"""Settings in words: they tell the parts of a report apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RUN = "run"
"""The setting that names the run, if there are several."""
BUDGET, TUNING_CLIPS = "clients.budget_mb", "corpus.tuning_clips"
PRIVACY = "privacy"
"""The setting that a matrix of releases varies: a mapping, whose keys say enough."""
_PHRASES = {RUN: "{}", PRIVACY: "{}", BUDGET: "{} MB", TUNING_CLIPS: "{} tuning clips"}


def settings_label(settings: Mapping[str, Any]) -> str:
    """Return settings in words, such as `30 MB, 5 tuning clips`."""
    return ", ".join(
        _PHRASES.get(key, f"{heading(key)} {{}}").format(plain_value(value))
        for key, value in settings.items()
    )


def heading(key: str) -> str:
    """Return the last part of a dotted key as the heading of a column: `budget MB`."""
    return "budget MB" if key == BUDGET else key.rsplit(".", 1)[-1].replace("_", " ")


def plain_value(value: Any) -> str:
    """Return a setting's value as plain text, without brackets or quotes."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain_value(v) for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain_value(v)}" for k, v in value.items())
    return "none" if value is None else str(value)
