"""Held-out clips: speakers and sentences that do not occur in training."""

from __future__ import annotations

import numpy as np

from fedsim.scenario.corpus import TOPICS
from fedsim.speech.voices import Take, render
from fedsim.speech.voices.sentences import WORD_SECONDS, WORDS, draw_sentences
from fedsim.speech.voices.speaker import speaker

FIRST_SPEAKER = 900_000
"""First of the speakers on which scores are measured."""


def sentences(clips: int) -> list[tuple[np.ndarray, str]]:
    """Return (clip, text) of as many speakers as clips, with sentences whose role is "test"."""
    texts = draw_sentences("en", TOPICS, "test", clips, np.random.default_rng(0))
    return [(render(Take(speaker("en", FIRST_SPEAKER + i), t)), t) for i, t in enumerate(texts)]


def words(clips: int) -> list[tuple[np.ndarray, str]]:
    """Return (clip, word) of as many speakers as clips, the 35 words in turn."""
    texts = [WORDS[i % len(WORDS)] for i in range(clips)]
    takes = [
        Take(speaker("en", FIRST_SPEAKER + i), t, 0, WORD_SECONDS) for i, t in enumerate(texts)
    ]
    return [(render(take), take.text) for take in takes]
