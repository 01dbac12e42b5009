"""Settings in words: what tells the parts of a report from each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RUN = "run"
"""The setting that names the run, where there are several."""
BUDGET, TUNING_CLIPS = "clients.budget_mb", "corpus.tuning_clips"
PRIVACY = "privacy"
"""The setting that a matrix of releases varies: a mapping, said in its own words."""
_PHRASES = {RUN: "{}", PRIVACY: "{}", BUDGET: "{} MB", TUNING_CLIPS: "{} tuning clips"}


def settings_label(settings: Mapping[str, Any]) -> str:
    """Return settings in words, such as `30 MB, 5 tuning clips`."""
    return ", ".join(
        _PHRASES.get(key, f"{heading(key)} {{}}").format(plain_value(value))
        for key, value in settings.items()
    )


def heading(key: str) -> str:
    """Return the last word of a dotted key, as the head of a column: `budget MB`."""
    return "budget MB" if key == BUDGET else key.rsplit(".", 1)[-1].replace("_", " ")


def plain_value(value: Any) -> str:
    """Return a setting's value as one would say it: no brackets, no quotes."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain_value(v) for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain_value(v)}" for k, v in value.items())
    return "none" if value is None else str(value)
