"""The scenario's model: one for all clients, or for each client that of its language.

A model with adapters per language (MMS) serves each client with the adapters, head and vocabulary
of the client's language, unless `model.target_lang` names one for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedsim.errors import FedsimError
from fedsim.quant.calibrators import CALIBRATORS
from fedsim.scenario.cells import cells_of
from fedsim.scenario.methods import FULL_PRECISION, OWN
from fedsim.scenario.schema import Scenario
from fedsim.speech.models import languages_of
from fedsim.speech.models.mms import language_among
from fedsim.study.model import StudyModel, load_study_model

KEPT = 8
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
    """Raise `FedsimError` for a method that would put what one language's model has into another's.

    A plan can be tried on the model of any language: its layers are the same. Ranges and rounded
    layers cannot.
    """
    for method in scenario.methods:
        if method.allocation == FULL_PRECISION or not set(method.tuned_on) - {OWN}:
            continue
        for cell in cells_of(method, scenario.quantization):
            if cell.rounded_by_device or CALIBRATORS[cell.calibration].static:
                plain = [name for name in CALIBRATORS if not CALIBRATORS[name].static]
                raise FedsimError(
                    f"methods: {cell.label} is tuned on other clients, whose models have adapters"
                    f" and heads of other languages (model {scenario.model.id!r}), and only bit"
                    f" depths fit those of any language; use tuned_on: own, or calibration"
                    f" {' or '.join(plain)} without moments of the device, or choose one language"
                    f" for all by model.target_lang"
                )
