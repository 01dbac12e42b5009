"""Passes of a full-precision model over a client's tuning clips, for sensing and calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from fedsim.quant.calibrators import needs
from fedsim.quant.model import Batch
from fedsim.quant.observe import LayerObservation, observe
from fedsim.quant.onepass import sense_and_observe
from fedsim.speech.models.base import SpeechModel, own_tokens, tuning_batches

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class TuningPass:
    """A model and the unlabelled clips that it is tuned on; made by `tuning_pass`."""

    model: SpeechModel
    clips: Sequence[np.ndarray]
    """1-D float32 at 16 kHz."""
    tokens: Sequence[torch.Tensor] | None
    """The model's own transcript of each clip; None for a model that needs none."""
    language: str | None = None

    def batches(self) -> Iterator[Batch]:
        """Yield the clips as batches for a forward pass."""
        return tuning_batches(self.model, self.clips, self.tokens, self.language)

    def sense(
        self,
        sense: Callable[[SpeechModel, Iterator[Batch]], T],
        calibrations: Iterable[str],
    ) -> tuple[T, dict[str, LayerObservation] | None]:
        """Return the result of `sense` on one pass, and what these calibrations need from it.

        See `fedsim.quant.onepass.sense_and_observe`.
        """
        return sense_and_observe(self.model, self.batches(), sense, calibrations)

    def observe(self, calibrations: Iterable[str]) -> dict[str, LayerObservation]:
        """Return the observations that these calibrations need, by a separate pass."""
        wanted = needs(calibrations)
        return observe(self.model, self.batches(), rows=wanted.rows, fisher=wanted.fisher)


def tuning_pass(
    model: SpeechModel, clips: Sequence[np.ndarray], language: str | None = None
) -> TuningPass:
    """Return a model and its tuning clips; a model that needs tokens transcribes them first."""
    return TuningPass(model, clips, own_tokens(model, clips, language), language)
