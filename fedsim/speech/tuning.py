"""Passes of a full-precision model over clips: a client's tuning clips, or public ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from fedsim.quant.calibrators import Needs, needs, on_user_data
from fedsim.quant.model import Batch
from fedsim.quant.observe import observe
from fedsim.quant.onepass import Passed, forward_only, one_pass
from fedsim.speech.fitting import fitted
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
        *,
        moments: bool = False,
    ) -> Passed[T]:
        """Return the result of `sense` on one pass, and what later steps need from it.

        See `fedsim.quant.onepass.one_pass`.
        """
        wanted = needs(on_user_data(calibrations))
        return self.in_batches(lambda m, clips: one_pass(m, clips, sense, wanted, moments=moments))

    def observe(self, calibrations: Iterable[str], *, moments: bool = False) -> Passed[None]:
        """Return the observations that these calibrations need, by a separate pass; with `moments`
        also second moments, by the same one if no calibration needs gradients."""
        wanted = needs(calibrations)
        if not wanted.fisher:
            return self._recorded(wanted, moments=moments)
        seen = self.in_batches(lambda m, clips: observe(m, clips, rows=wanted.rows, fisher=True))
        if not moments:
            return Passed(None, seen)
        return Passed(None, seen, self._recorded(Needs(), moments=True).moments)

    def _recorded(self, wanted: Needs, *, moments: bool) -> Passed[None]:
        """Return what one pass without sensing records."""
        return self.in_batches(
            lambda m, clips: one_pass(m, clips, forward_only, wanted, moments=moments)
        )

    def in_batches(self, run: Callable[[SpeechModel, Iterator[Batch]], T]) -> T:
        """Return `run` of the model and the batches, as large as the GPU's memory allows."""
        return fitted(self.model, lambda model: run(model, replace(self, model=model).batches()))


def tuning_pass(
    model: SpeechModel, clips: Sequence[np.ndarray], language: str | None = None
) -> TuningPass:
    """Return a model and its tuning clips; a model that needs tokens transcribes them first."""
    return TuningPass(model, clips, own_tokens(model, clips, language), language)
