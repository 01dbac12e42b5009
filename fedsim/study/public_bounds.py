"""Public bounds of layer profiles, from synthetic speakers: known before any user's audio."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np

from fedsim.base.cache import LRUCache
from fedsim.privacy.bounds import Bounds, public_bounds
from fedsim.quant.sensitivity import sense
from fedsim.scenario.corpus import READERS, TOPICS, CorpusSettings, PopulationSettings
from fedsim.scenario.schema import Scenario
from fedsim.speech.clips import read_utterance
from fedsim.speech.models.base import SpeechModel, own_tokens, tuning_batches
from fedsim.speech.voices.speaker import FIRST_PUBLIC_SPEAKER

ModelOf = Callable[[str | None], SpeechModel]
"""f(language) -> the model for those who speak it."""
_SEED = 0
_KEPT = 4
"""Languages whose models are kept."""


@dataclass(frozen=True)
class _PublicRequest:
    """What public sensitivities depend on: equal requests are computed once per process."""

    of_model: str
    corpus: str
    """Settings of the public corpus, as JSON."""
    measure: str
    model: ModelOf = field(compare=False)


def scenario_bounds(scenario: Scenario, model: ModelOf) -> Bounds | None:
    """Return the public bounds of each layer, None where the scenario's release reads none.

    They come from synthetic speakers of the scenario's languages and topics who take part in no
    study, each with as many clips as a client, and each through the `model` of its language.

    Raises `FedsimError` if the synthesizer is missing, the model has not one of the languages, or a
    layer's sensitivity is not positive.
    """
    if not scenario.privacy.needs_bounds:
        return None
    values = public_sensitivities(scenario, model)
    return public_bounds(values, quantiles=scenario.privacy.bounds)


def public_sensitivities(scenario: Scenario, model: ModelOf) -> np.ndarray:
    """Return the sensitivities of the public speakers, float64 (S, L)."""
    people = scenario.corpus.population
    corpus = CorpusSettings(
        kind="voices",
        group_by="speaker",
        population=PopulationSettings(
            speakers=scenario.privacy.public_voices,
            first=FIRST_PUBLIC_SPEAKER,
            languages=("en",) if people is None else people.languages,
            topics=TOPICS if people is None else people.topics,
        ),
        tuning_clips=scenario.corpus.tuning_clips,
        test_clips=1,
    )
    engine = scenario.engine
    of_model = json.dumps([scenario.model.model_dump(), engine.threads, engine.device])
    measure = scenario.quantization.sensitivity
    return _sensed(_PublicRequest(of_model, corpus.model_dump_json(), measure, model))


@lru_cache(maxsize=4)
def _sensed(request: _PublicRequest) -> np.ndarray:
    rows = []
    models: LRUCache[SpeechModel] = LRUCache(max_values=_KEPT)
    corpus = CorpusSettings.model_validate_json(request.corpus)
    for speaker in READERS["voices"].open(corpus, _SEED).values():
        clips = [read_utterance(utterance) for utterance in speaker.tuning]
        model = models.get(speaker.language, partial(request.model, speaker.language))
        tokens = own_tokens(model, clips, speaker.language)
        batches = tuning_batches(model, clips, tokens, speaker.language)
        rows.append(sense(model, batches, request.measure))
    return np.array(rows)
