"""Whisper's encoder with a classifier on top, over a fixed window of audio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedsim.quant.layers import Layer
from fedsim.quant.model import Batch
from fedsim.speech.models.base import Hypothesis, by_length, placed_batches
from fedsim.speech.models.window import window_seconds, windowed


@dataclass(frozen=True)
class WhisperClassifier:
    """Adapter for `WhisperForAudioClassification`; see
    `fedsim.speech.models.base.SpeechModel`."""

    id: str
    module: nn.Module
    layers: tuple[Layer, ...]
    extractor: Any
    batch_size: int
    settings: Mapping[str, Any]
    task: str = "classify"
    needs_tokens: bool = False

    @property
    def window(self) -> float:
        """Seconds of audio that the encoder takes."""
        return window_seconds(self.module)

    def batches(
        self, clips: Sequence[np.ndarray], language: str | None = None
    ) -> Iterator[tuple[Batch, list[int]]]:
        """Yield batches by length; `language` is not used."""
        groups = by_length(clips, self.batch_size, exact=False)
        return placed_batches(
            self.module, groups, lambda places: self._encode([clips[i] for i in places])
        )

    def _encode(self, clips: list[np.ndarray]) -> Batch:
        features, mel = windowed(self.module, self.extractor, clips)
        # The classifier pools the whole window; of the silence that fills it nothing is sensed.
        encoder = (mel + 1) // 2
        speech = {
            layer.name: mel if layer.name == "encoder.conv1" else encoder
            for layer in self.layers
            if layer.name.startswith("encoder.") or layer.name == "projector"
        }
        return Batch({"input_features": features}, speech=speech)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return logits (B, classes)."""
        return self.module(**batch.inputs).logits

    def answers(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits of all clips."""
        return logits

    def own_tokens(self, batch: Batch) -> list[torch.Tensor]:
        """Return an empty list: a forward pass takes audio only."""
        return []

    def with_tokens(self, batch: Batch, tokens: Sequence[torch.Tensor]) -> Batch:
        """Return the batch unchanged: a forward pass takes audio only."""
        return batch

    def loss(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy against the most likely class, summed over clips."""
        return F.cross_entropy(logits, logits.detach().argmax(-1), reduction="sum")

    def transcribe(self, batch: Batch) -> list[Hypothesis]:
        """Return the name of the most likely class of each clip."""
        names: Any = self.module.config.id2label  # type: ignore[union-attr]
        return [Hypothesis(str(names[i])) for i in self.forward(batch).argmax(-1).tolist()]


def adapt(
    model: str,
    module: nn.Module,
    layers: tuple[Layer, ...],
    extractor: Any,
    tokenizer: Any,
    batch_size: int,
    settings: Mapping[str, Any],
) -> WhisperClassifier:
    """Return the adapter of a loaded network; a tokenizer is not used."""
    return WhisperClassifier(model, module, layers, extractor, batch_size, settings)
