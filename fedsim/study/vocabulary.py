"""The scenario's model with the vocabulary of each client's language."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch

from fedsim.scenario.schema import Scenario
from fedsim.speech.vocabulary import Vocabulary, vocabulary_of
from fedsim.study.model import StudyModel


@dataclass(frozen=True, eq=False)
class TrimmedModels:
    """The model of a study, ready for packing with the tokens of any language; made by
    `trimmed_models`."""

    study: StudyModel
    vocabulary: Vocabulary | None
    """None: every model file holds the whole vocabulary."""
    _known: dict[str | None, StudyModel] = field(default_factory=dict)

    @property
    def reserve(self) -> int:
        """Rows that a device fills with tokens of its own transcripts."""
        return 0 if self.vocabulary is None else self.vocabulary.own

    def of(self, language: str | None) -> StudyModel:
        """Return the model for clients of a language; raises `FedsimError` if it is unknown."""
        if self.vocabulary is None:
            return self.study
        if language not in self._known:
            self._known[language] = self.study.trimmed(self.vocabulary.rows(language))
        return self._known[language]

    def own(self, language: str | None, transcripts: Iterable[torch.Tensor]) -> StudyModel:
        """Return the model of one client: of the same sizes, with tokens of its transcripts."""
        study = self.of(language)
        if self.vocabulary is None or not self.reserve:
            return study
        return replace(study, rows=self.vocabulary.own_rows(language, transcripts))


def trimmed_models(scenario: Scenario, study: StudyModel) -> TrimmedModels:
    """Return a loaded model with the scenario's choice of tokens.

    Raises `FedsimError` for a model without a token embedding.
    """
    settings = scenario.model.vocabulary
    if settings is None:
        return TrimmedModels(study, None)
    chosen = vocabulary_of(study.model, settings.words, settings.own, settings.words_from)
    return TrimmedModels(study, chosen)
