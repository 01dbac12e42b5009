"""Speakers as the audit senses them, like their devices would: two sessions, and worlds.

The sessions of a speaker are two releases on different clips. The first is that of the run; for the
second the synthetic speaker says as many other sentences, drawn by another seed. A world is a
release on half of the clips of both sessions; worlds come in pairs that share no clip, so each clip
is in half of them. Only synthetic speakers can be recorded again: without a second session, the
attacks that need one are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from fedsim.base.cache import LRUCache
from fedsim.base.seeds import client_rng
from fedsim.quant.sensitivity import sense
from fedsim.scenario.corpus import READERS
from fedsim.scenario.schema import Scenario
from fedsim.speech.clips import Clients, Utterance, read_utterance
from fedsim.speech.corpus import open_clients
from fedsim.speech.models.base import SpeechModel, own_tokens, tuning_batches
from fedsim.speech.voices import Take
from fedsim.study.by_language import KEPT, StudyModels, open_study_models

PAIRS = 12
"""Of worlds per client: each clip is then in 12 and out of 12, one more than the attack needs."""


@dataclass
class Voices:
    """The speakers of a scenario, and of others that differ in nothing that sensing depends on."""

    scenario: Scenario
    models: StudyModels
    clients: Clients
    open_again: Callable[[], Clients]
    """Opens the same speakers with another seed and twice the tuning clips; raises `FedsimError` if
    there are not so many sentences, so it is called only when they are needed."""
    _again: Clients | None = None
    _first: dict[str, np.ndarray] = field(default_factory=dict)
    _second: dict[str, np.ndarray] = field(default_factory=dict)
    _worlds: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    _spoken: LRUCache[SpeechModel] = field(default_factory=lambda: LRUCache(max_values=KEPT))

    @property
    def layers(self) -> int:
        """Number of layers of the model, whoever speaks."""
        return len(self.models.first.model.layers)

    def model(self, language: str | None) -> SpeechModel:
        """Return the model of speakers of a language; `FedsimError` if it has none."""
        return self._spoken.get(language, lambda: self.models.load(language).model)

    @property
    def has_sessions(self) -> bool:
        """Whether each speaker can give more clips than those of the run."""
        return READERS[self.scenario.corpus.kind].has_sessions

    def first(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the sensitivities (L,) of each client's tuning clips, as its device would."""
        return {key: self._once(self._first, key, self.clients[key].tuning) for key in keys}

    def second(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the sensitivities (L,) of each client's second session."""
        return {key: self._once(self._second, key, self.other_clips(key)) for key in keys}

    def worlds(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the sensitivities of a client's worlds, (W, L), and their clips, bool (W, C)."""
        if key not in self._worlds:
            pool = (*self.clients[key].tuning, *self.other_clips(key))
            rng = client_rng(self.scenario.seed, key, "audit worlds")
            chosen = np.zeros((2 * PAIRS, len(pool)), bool)
            for pair in range(PAIRS):
                order = rng.permutation(len(pool))
                chosen[2 * pair, order[: len(pool) // 2]] = True
                chosen[2 * pair + 1, order[len(pool) // 2 :]] = True
            values = [
                self._sense(key, [u for u, is_in in zip(pool, row, strict=True) if is_in])
                for row in chosen
            ]
            self._worlds[key] = np.array(values), chosen
        return self._worlds[key]

    def other_clips(self, key: str) -> tuple[Utterance, ...]:
        """Return as many clips as a client tunes on, with other content.

        Raises `FedsimError` if there are not enough.
        """
        if self._again is None:
            self._again = self.open_again()
        own = self.clients[key].tuning
        known = {_content(u) for u in own}
        others = [u for u in self._again[key].tuning if _content(u) not in known]
        return tuple(others[: len(own)])

    def _once(
        self, known: dict[str, np.ndarray], key: str, clips: Sequence[Utterance]
    ) -> np.ndarray:
        if key not in known:
            known[key] = self._sense(key, clips)
        return known[key]

    def _sense(self, key: str, utterances: Sequence[Utterance]) -> np.ndarray:
        convert, language = self.scenario.corpus.convert, self.clients[key].language
        clips = [read_utterance(u, convert=convert) for u in utterances]
        model = self.model(language)
        tokens = own_tokens(model, clips, language)
        batches = tuning_batches(model, clips, tokens, language)
        return sense(model, batches, self.scenario.quantization.sensitivity)


def open_voices(scenario: Scenario) -> Voices:
    """Load the scenario's model and open its corpus; raises `FedsimError` as both do."""
    corpus = scenario.corpus
    clients = open_clients(corpus, scenario.clients, scenario.seed, scenario.text_normalizer)
    double = corpus.model_copy(update={"tuning_clips": 2 * corpus.tuning_clips})
    # Without clients.min_clips, which with twice the clips would choose other speakers.
    open_again = partial(READERS[corpus.kind].open, double, scenario.seed + 1)
    return Voices(scenario, open_study_models(scenario), clients, open_again)


def _content(utterance: Utterance) -> object:
    """Return what two clips of one speaker must not share: the text, or the take of one word."""
    source = utterance.source
    if isinstance(source, Take) and not source.seconds:
        return source.text
    return source
