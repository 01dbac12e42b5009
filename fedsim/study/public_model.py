"""What is publicly known of a scenario's model before any user's audio."""

from __future__ import annotations

from fedsim.scenario.corpus import TOPICS
from fedsim.scenario.schema import Scenario
from fedsim.speech.corpus import open_clients
from fedsim.speech.models.base import SpeechModel
from fedsim.speech.public import public_request, public_set
from fedsim.speech.public_model import PublicModel
from fedsim.speech.public_set import PublicSet

_LOOKED_UP = 100


def public_model(
    scenario: Scenario, model: SpeechModel, language: str | None = None
) -> PublicModel:
    """Return the model and its public clips, of one language if it is the model of one; nothing is
    computed yet."""
    return PublicModel(model, lambda: public_clips(scenario, language), scenario.engine.threads)


def public_clips(scenario: Scenario, language: str | None = None) -> PublicSet:
    """Return the clips of `quantization.public_clips`, or synthetic voices in all languages of the
    scenario; with a `language` only clips that are not of another.

    Raises `FedsimError` if the synthesizer is missing, or the public corpus cannot be read or has
    no such clips.
    """
    settings, people = scenario.quantization, scenario.corpus.population
    corpus = settings.public_clips
    spoken = (language,) if language else () if corpus else languages_of(scenario)
    request = public_request(
        spoken,
        TOPICS if people is None else people.topics,
        n_clips=settings.public_count,
        corpus=corpus,
        language=language,
    )
    return public_set(request)


def languages_of(scenario: Scenario) -> tuple[str, ...]:
    """Return the languages that a scenario's clients speak, sorted; English where none is given.

    Those of a population are in the scenario; for recordings the clients' are looked up, of up to
    `_LOOKED_UP` clients.
    """
    people = scenario.corpus.population
    if people is not None:
        return tuple(sorted(people.languages))
    clients = open_clients(scenario.corpus, scenario.clients, scenario.seed)
    spoken = {clients[key].language for key in sorted(clients)[:_LOOKED_UP]}
    return tuple(sorted(language for language in spoken if language)) or ("en",)
