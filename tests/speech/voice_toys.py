"""Synthetic speakers: some takes, one without acoustics, and populations with their clients."""

from __future__ import annotations

from dataclasses import replace

from fedsim.scenario.clients import ClientSettings
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.clips import Clients
from fedsim.speech.corpus import open_clients
from fedsim.speech.voices import Take
from fedsim.speech.voices.sentences import WORD_SECONDS
from fedsim.speech.voices.speaker import speaker

RATE = 16_000
TEXT = "turn on the lamp in the living room"
TAKES = [
    Take(speaker("en", 17), TEXT),
    Take(speaker("en", 17), "yes", 3, WORD_SECONDS),
    Take(speaker("ja", 4), "でんき つけて"),
    Take(speaker("ru", 999_999), "включи свет на кухне", 1_000_007),
]
PLAIN = replace(
    speaker("en", 17),
    tract=1.0,
    low_cut_hz=1.0,
    high_cut_hz=16_000.0,
    tilt_db=0.0,
    echo_db=-90.0,
    snr_db=90.0,
    noise_slope_db=0.0,
    level_db=-20.0,
)
"""A speaker whose room and microphone change nothing that could be heard."""


def corpus(group_by="speaker", tuning=4, test=6, **people) -> CorpusSettings:
    return CorpusSettings.model_validate(
        {
            "kind": "voices",
            "group_by": group_by,
            "tuning_clips": tuning,
            "test_clips": test,
            "population": {"speakers": 6, **people},
        }
    )


def clients(found: CorpusSettings, seed=0, select=None, limit=None) -> Clients:
    return open_clients(found, ClientSettings(budget_mb=1, select=select, limit=limit), seed)


def takes(found: Clients, part: str | None = None) -> list[Take]:
    """Return every take of all clients, or those of one part ("tuning" or "test")."""
    parts = [part] if part else ["tuning", "test"]
    return [clip.source for c in found.values() for p in parts for clip in getattr(c, p)]
