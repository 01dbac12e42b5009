"""Passes of a full-precision model over clips: a client's tuning clips, or public ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from fedsim.quant.calibrators import needs, on_user_data
from fedsim.quant.model import Batch
from fedsim.quant.observe import observe
from fedsim.quant.onepass import Passed, forward_only, one_pass
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
        return one_pass(self.model, self.batches(), sense, wanted, moments=moments)

    def observe(self, calibrations: Iterable[str], *, moments: bool = False) -> Passed[None]:
        """Return the observations that these calibrations need, by a separate pass; with `moments`
        also second moments, by the same one if no calibration needs gradients."""
        wanted = needs(calibrations)
        if not wanted.fisher:
            return one_pass(self.model, self.batches(), forward_only, wanted, moments=moments)
        seen = observe(self.model, self.batches(), rows=wanted.rows, fisher=True)
        if not moments:
            return Passed(None, seen)
        apart = one_pass(self.model, self.batches(), forward_only, moments=True)
        return Passed(None, seen, apart.moments)


def tuning_pass(
    model: SpeechModel, clips: Sequence[np.ndarray], language: str | None = None
) -> TuningPass:
    """Return a model and its tuning clips; a model that needs tokens transcribes them first."""
    return TuningPass(model, clips, own_tokens(model, clips, language), language)
