"""The scenario's model: one for all clients, or for each client that of its language.

A model with adapters per language (MMS) serves each client with the adapters, head and vocabulary
of the client's language, unless `model.target_lang` names one for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedsim.errors import FedsimError
from fedsim.scenario.cells import needs_others
from fedsim.scenario.schema import Scenario
from fedsim.speech.models import languages_of
from fedsim.speech.models.mms import language_among
from fedsim.study.model import StudyModel, load_study_model

KEPT = 4
"""Languages whose models a process keeps at most. All share the weights that do not differ, so that
another one takes its adapters and its head."""


@dataclass(frozen=True, eq=False)
class StudyModels:
    """A scenario's model in full precision; made by `open_study_models`."""

    scenario: Scenario
    first: StudyModel
    """That of all clients; by language, that of the model's own language."""
    languages: tuple[str, ...] = ()
    """Languages of which the model has adapters each; empty where it is one for all clients."""

    def name(self, language: str | None) -> str:
        """Return what a model with languages calls one; `FedsimError` if it has none."""
        return language_among(language, self.languages, self.scenario.model.id)

    def load(self, language: str | None) -> StudyModel:
        """Return the model for clients that speak `language`; `FedsimError` if it has none."""
        if not self.languages:
            return self.first
        name = self.name(language)
        if name == self.languages[0]:
            return self.first
        return load_study_model(self.scenario, language=name, beside=self.first)


def model_languages(scenario: Scenario) -> tuple[str, ...]:
    """Return the languages of which clients are served by models of their own, first the one to
    begin with; empty where one model serves all.

    Raises `FedsimError` as `fedsim.speech.models.load_model` does.
    """
    if scenario.model.target_lang is not None:
        return ()
    found = languages_of(scenario.model.id)
    if len(found) < 2:
        return ()
    # A folder may hold the adapters of a few languages, and the vocabularies of a thousand.
    folder = Path(scenario.model.id)
    first = next((name for name in found if any(folder.glob(f"adapter.{name}.*"))), found[0])
    return first, *(name for name in found if name != first)


def open_study_models(scenario: Scenario) -> StudyModels:
    """Load the scenario's full-precision model; that of further languages is loaded on demand.

    Raises `FedsimError` as `fedsim.speech.models.load_model` does, and for methods that cannot be
    compared between languages.
    """
    languages = model_languages(scenario)
    if languages:
        _check(scenario)
    first = load_study_model(scenario, language=languages[0] if languages else None)
    return StudyModels(scenario, first, languages)


def _check(scenario: Scenario) -> None:
    """Raise `FedsimError` for what a scenario with a model per language cannot ask for."""
    if needs_others(scenario):
        raise FedsimError(
            f"methods: tuned_on names other clients, whose models have adapters and heads of other"
            f" languages, since model {scenario.model.id!r} serves each client with its own; use"
            f" tuned_on: own, or choose one language for all by model.target_lang"
        )
    if scenario.fleet is not None:
        raise FedsimError(
            f"fleet: model {scenario.model.id!r} serves each client with the adapters and the head"
            f" of its language, and devices are timed with one model; choose one language for all"
            f" by model.target_lang, or remove fleet"
        )
