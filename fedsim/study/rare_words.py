"""Whether errors on rare words can be counted in a study, found out before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.errors import FedsimError
from fedsim.scenario.schema import Scenario
from fedsim.speech.clips import Clients
from fedsim.speech.rare import SETTING, rarity

if TYPE_CHECKING:
    from fedsim.speech.models.base import SpeechModel


def check_rare_words(scenario: Scenario, clients: Clients) -> None:
    """Check that the words of every test clip can be rare, where the scenario counts these.

    Raises:
        FedsimError: names a client with a clip whose language is missing or has no list of words.
    """
    beyond, texts = scenario.rare_beyond, scenario.text_normalizer
    if beyond is None:
        return
    people = scenario.corpus.population
    if people is not None:
        for language in people.languages:
            rarity(language, beyond, texts)
        return
    known: set[str | None] = set()
    for client in clients.values():
        for spoken in sorted({u.language or client.language for u in client.test} - known, key=str):
            try:
                rarity(spoken, beyond, texts)
            except FedsimError as error:
                raise FedsimError(f"client {client.key!r}: {error}") from None
            known.add(spoken)


def check_has_words(scenario: Scenario, model: SpeechModel) -> None:
    """Raise `FedsimError` for a classifier, where the scenario counts errors on rare words."""
    if scenario.rare_beyond is not None and model.task == "classify":
        raise FedsimError(
            f"{SETTING}: model {model.id!r} names classes and transcribes no words; remove"
            f" {SETTING}, or choose a model that transcribes"
        )
