"""Encoders of audio with a CTC head or a classifier: wav2vec 2.0 and its kin, FastConformer.

One adapter serves them all; what sets one apart is in `fedsim.speech.models.encoder_kinds`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedsim.errors import FedsimError
from fedsim.quant.layers import Layer
from fedsim.quant.model import Batch
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.models.base import Hypothesis, by_length, placed_batches
from fedsim.speech.models.encoder_kinds import MEL, RAW, RAW_ALONE, STACKED_MEL, EncoderKind

GRAIN = SAMPLE_RATE // 10
"""Padded batches are a multiple of this many samples long. So only few lengths occur: torch
compiles convolutions anew for each length, and the memory that one batch frees fits the next."""
_HEADS = ("lm_head", "ctc_head")


@dataclass(frozen=True)
class Encoder:
    """Adapter for encoders of audio; see `fedsim.speech.models.base.SpeechModel`."""

    id: str
    module: nn.Module
    layers: tuple[Layer, ...]
    extractor: Any
    tokenizer: Any
    batch_size: int
    settings: Mapping[str, Any]
    kind: EncoderKind
    grain: int = GRAIN

    needs_tokens: bool = False

    @property
    def task(self) -> str:
        """ "classify" for the sequence classifiers, else "transcribe"."""
        return "transcribe" if self.tokenizer is not None else "classify"

    @property
    def pads(self) -> bool:
        """Whether clips of different lengths may share a batch."""
        return self.kind.pads(self.module.config)

    def batches(
        self, clips: Sequence[np.ndarray], language: str | None = None
    ) -> Iterator[tuple[Batch, list[int]]]:
        """Yield batches by length; `language` is not used."""
        groups = by_length(clips, self.batch_size, exact=not self.pads)
        return placed_batches(
            self.module, groups, lambda places: self._encode([clips[i] for i in places])
        )

    def _encode(self, clips: list[np.ndarray]) -> Batch:
        lengths = torch.tensor([len(clip) for clip in clips])
        inputs = self.kind.features(self.extractor, clips, self.grain if self.pads else 1)
        # The head's even if the user keeps that layer: transcripts are cut by it.
        heads = [Layer(name, "linear", ()) for name in _HEADS if hasattr(self.module, name)]
        missing = [head for head in heads if all(head.name != a.name for a in self.layers)]
        layers = (*self.layers, *missing)
        return Batch(inputs, *self.kind.frames(self.module.config, layers, lengths, inputs))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return logits: (B, T, V) of a CTC model, (B, classes) of a classifier."""
        return self.module(**batch.inputs).logits

    def answers(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits (P, V) of all frames that are speech, or of all clips."""
        if self.task == "classify":
            return logits
        frames = _speech(batch, logits)
        return torch.cat([clip[:n] for clip, n in zip(logits, frames, strict=True)])

    def own_tokens(self, batch: Batch) -> list[torch.Tensor]:
        """Return an empty list: a forward pass takes audio only."""
        return []

    def with_tokens(self, batch: Batch, tokens: Sequence[torch.Tensor]) -> Batch:
        """Return the batch unchanged: a forward pass takes audio only."""
        return batch

    def loss(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Return CTC loss against the greedy transcript of `logits`, or cross-entropy against the
        most likely class, summed over clips."""
        best = logits.detach().argmax(-1)
        if self.task == "classify":
            return F.cross_entropy(logits, best, reduction="sum")
        frames = _speech(batch, logits)
        config: Any = self.module.config
        # On the processor: the loss of CUDA has no deterministic gradient.
        rows = [self._collapse(ids, n) for ids, n in zip(best.cpu(), frames, strict=True)]
        return F.ctc_loss(
            F.log_softmax(logits.float(), dim=-1).transpose(0, 1).cpu(),
            torch.cat(rows),
            torch.tensor(frames),
            torch.tensor([len(row) for row in rows]),
            blank=config.pad_token_id,
            reduction="sum",
            zero_infinity=True,
        )

    def transcribe(self, batch: Batch) -> list[Hypothesis]:
        """Return the greedy transcript, or the name of the most likely class, of each clip."""
        logits = self.forward(batch)
        best = logits.argmax(-1).cpu()
        if self.task == "classify":
            names: Any = self.module.config.id2label  # type: ignore[union-attr]
            return [Hypothesis(str(names[int(i)])) for i in best]
        frames = _speech(batch, logits)
        rows = [ids[:n].tolist() for ids, n in zip(best, frames, strict=True)]
        return [Hypothesis(text.strip()) for text in self.tokenizer.batch_decode(rows)]

    def _collapse(self, ids: torch.Tensor, n: int) -> torch.Tensor:
        """Return the labels of a best path: repeats merged, blanks dropped."""
        merged = torch.unique_consecutive(ids[:n])
        config: Any = self.module.config
        return merged[merged != config.pad_token_id]


def _speech(batch: Batch, logits: torch.Tensor) -> list[int]:
    """Return how many frames of each clip's logits (B, T, V) are speech."""
    counts = next((batch.frames_out[name] for name in _HEADS if name in batch.frames_out), None)
    return [logits.shape[1]] * len(logits) if counts is None else counts.tolist()


def adapt(
    kind: EncoderKind,
    model: str,
    module: nn.Module,
    layers: tuple[Layer, ...],
    extractor: Any,
    tokenizer: Any,
    batch_size: int,
    settings: Mapping[str, Any],
) -> Encoder:
    """Return the adapter of a loaded network; raise `FedsimError` for a CTC model without
    tokenizer."""
    is_ctc = type(module).__name__.endswith("ForCTC")
    if is_ctc and tokenizer is None:
        raise FedsimError(
            f"model {model!r} has a CTC head but no tokenizer files (vocab.json, "
            f"tokenizer_config.json); add them to its folder"
        )
    reader = tokenizer if is_ctc else None
    return Encoder(model, module, layers, extractor, reader, batch_size, settings, kind)


raw = partial(adapt, RAW)
raw_alone = partial(adapt, RAW_ALONE)
stacked_mel = partial(adapt, STACKED_MEL)
mel = partial(adapt, MEL)


def default_extractor(normalize: bool) -> Any:
    """Return a feature extractor of raw audio: each clip as it is, or with zero mean and unit
    variance."""
    from transformers import Wav2Vec2FeatureExtractor

    return Wav2Vec2FeatureExtractor(do_normalize=normalize, sampling_rate=SAMPLE_RATE)
