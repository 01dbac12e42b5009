"""What a device hears: its clips, the model's own labels of them, and what each layer makes of
them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from clients.workbench import Workbench
from fedsim.errors import AudioError, FedsimError
from fedsim.quant.calibration import NEEDS_FISHER, NO_USER_DATA, needs
from fedsim.quant.model import Batch
from fedsim.quant.observe import Seen, SeenLayers, observe, observing
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.corpus import ClientData, Utterance, read_utterance
from fedsim.speech.models.base import (
    SpeechModel,
    own_tokens,
    public_clips,
    tuning_batches,
)

PUBLIC = ""
"""Stands for the public signal where a client's key is asked for."""

T = TypeVar("T")


@dataclass(frozen=True)
class Hearing:
    """One client's audio, heard by the full-precision model as its device holds it.

    `mode` is one of `fedsim.quant.memory`; pseudo-labels come from the model in the same mode.
    """

    bench: Workbench
    data: ClientData
    mode: str = "full"

    def read(self, utterances: Sequence[Utterance]) -> list[np.ndarray]:
        """Return the clips of utterances of this client."""
        convert = self.bench.scenario.corpus.convert

        def clip(utterance: Utterance) -> np.ndarray:
            key = self.data.key, utterance.key
            return self.bench.clips.get(key, lambda: read_utterance(utterance, convert=convert))

        try:
            return [clip(utterance) for utterance in utterances]
        except AudioError as error:
            raise AudioError(f"client {self.data.key!r}: {error}") from error

    def workload(self) -> tuple[float, float]:
        """Return the seconds of the tuning clips, and the tokens of their pseudo-labels."""
        tokens = self._tokens(self.data.key) or ()
        return seconds(self.read(self.data.tuning)), float(sum(len(row) for row in tokens))

    def sense(self, look: Callable[[SpeechModel, Iterator[Batch]], T]) -> T:
        """Return what `look` returns of the model and the tuning clips, by one pass over them.

        What calibration will ask of these clips is noted on the way.
        """
        bench, batches = self.bench, self._batches(self.data.key)
        ahead = {c for method in bench.scenario.methods for c in method.calibration} - NO_USER_DATA
        with bench.sensing(self.mode):
            if not ahead or ahead & NEEDS_FISHER:  # gradients take a pass of their own
                return look(bench.model, batches)
            rows = needs(ahead)["rows"]
            with observing(bench.model, rows=rows) as watch:
                found = look(bench.model, watch.passing(batches))
        bench.seen.get(self._key(rows), lambda: SeenLayers(watch.seen()))
        return found

    def seen(self, source: str, calibrations: set[str]) -> dict[str, Seen]:
        """Return what calibrations ask of the clips of this client, or of the public signal.

        Raises `FedsimError` for one that needs gradients, where the model is not whole in memory.
        """
        bench, wanted = self.bench, needs(calibrations)
        if self.mode != "full" and wanted["fisher"]:
            raise FedsimError(
                f"client {self.data.key!r}: calibration {min(calibrations & NEEDS_FISHER)!r} needs "
                f"gradients and so the whole model in memory, and its device has room for it only "
                f"{self.mode}: use cosine or minmax, or give the device more memory"
            )

        def look() -> SeenLayers:
            batches = self._batches(source)
            with bench.sensing(self.mode):
                return SeenLayers(observe(bench.model, batches, **wanted))

        if source == PUBLIC or wanted["fisher"]:
            return look().layers
        return bench.seen.get(self._key(wanted["rows"]), look).layers

    def _key(self, rows: bool) -> tuple[str, str, bool]:
        return self.data.key, self.mode, rows

    def _batches(self, source: str) -> Iterator[Batch]:
        """Return this client's tuning clips, or the public signal, as batches with
        pseudo-labels."""
        clips, language = self._clips(source), self.data.language
        return tuning_batches(self.bench.model, clips, self._tokens(source), language)

    def _clips(self, source: str) -> list[np.ndarray]:
        return public_clips() if source == PUBLIC else self.read(self.data.tuning)

    def _tokens(self, source: str) -> list[torch.Tensor] | None:
        """Return the pseudo-labels of a source's clips, None where the model needs none."""
        bench, language = self.bench, self.data.language

        def label() -> list[torch.Tensor] | None:
            with bench.sensing(self.mode):
                return own_tokens(bench.model, self._clips(source), language)

        return bench.remember(("tokens", self.mode, source, language), label)


def seconds(clips: Sequence[np.ndarray]) -> float:
    """Return how long clips are together."""
    return sum(len(clip) for clip in clips) / SAMPLE_RATE
