"""wav2vec 2.0 and its Conformer variant, with a CTC head or a classifier.

Padding changes the logits of models whose first convolution is group-normalised (the base models,
`feat_extract_norm: group`) and of Conformers (an unmasked depthwise convolution): their batches
hold clips of one length only. For the others, clips are padded to whole tenths of a second and
masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedsim.errors import FedsimError
from fedsim.quant.layers import Layer
from fedsim.quant.model import Batch
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.models.base import Hypothesis, by_length

GRAIN = SAMPLE_RATE // 10
"""Padded batches are a multiple of this many samples long. So only few lengths occur: torch
compiles convolutions anew for each length, and the memory that one batch frees fits the next."""


@dataclass(frozen=True)
class Wav2Vec2:
    """Adapter for the family `wav2vec2`; see `fedsim.speech.models.base.SpeechModel`."""

    id: str
    module: nn.Module
    layers: tuple[Layer, ...]
    extractor: Any
    tokenizer: Any
    batch_size: int
    settings: Mapping[str, Any]
    grain: int = GRAIN

    needs_tokens: bool = False

    @property
    def task(self) -> str:
        """ "classify" for the sequence classifiers, else "transcribe"."""
        return "transcribe" if self.tokenizer is not None else "classify"

    @property
    def pads(self) -> bool:
        """Whether clips of different lengths may share a batch."""
        config: Any = self.module.config
        return config.feat_extract_norm == "layer" and "conformer" not in config.model_type

    def batches(
        self, clips: Sequence[np.ndarray], language: str | None = None
    ) -> Iterator[tuple[Batch, list[int]]]:
        """Yield batches by length; `language` is not used."""
        for places in by_length(clips, self.batch_size, exact=not self.pads):
            yield self._encode([clips[i] for i in places]), places

    def _encode(self, clips: list[np.ndarray]) -> Batch:
        lengths = torch.tensor([len(c) for c in clips])
        grain = self.grain if self.pads else 1
        padded = bool((lengths != -(-lengths.max() // grain) * grain).any())
        inputs = self.extractor(
            clips,
            sampling_rate=SAMPLE_RATE,
            padding=True,
            pad_to_multiple_of=grain,
            return_attention_mask=padded,
            return_tensors="pt",
        )
        batch = {"input_values": inputs["input_values"].float()}
        frames = self._frames(lengths)
        if not padded:
            # An even kernel gives one frame too many, which is cut off behind the layer.
            cut = (a.name for a in self.layers if a.name.endswith("pos_conv_embed.conv"))
            return Batch(batch, frames_out=dict.fromkeys(cut, frames[-1]))
        batch["attention_mask"] = inputs["attention_mask"]
        into, out = {}, {}
        for layer in self.layers:
            stage = _conv_stage(layer.name)
            if stage is not None:
                into[layer.name], out[layer.name] = frames[stage], frames[stage + 1]
            elif _has_frames(layer.name):
                into[layer.name] = out[layer.name] = frames[-1]
        return Batch(batch, into, out)

    def _frames(self, lengths: torch.Tensor) -> list[torch.Tensor]:
        """Return the frames of each clip before and after every convolution."""
        config: Any = self.module.config
        frames = [lengths]
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            frames.append((frames[-1] - kernel) // stride + 1)
        return frames

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return logits: (B, T, V) of a CTC model, (B, classes) of a classifier."""
        return self.module(**batch.inputs).logits

    def answers(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits (P, V) of all frames that are speech, or of all clips."""
        if self.task == "classify":
            return logits
        return torch.cat([clip[:n] for clip, n in zip(logits, self._speech(batch), strict=True)])

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
        frames = self._speech(batch)
        config: Any = self.module.config
        rows = [self._collapse(ids, n) for ids, n in zip(best, frames, strict=True)]
        return F.ctc_loss(
            F.log_softmax(logits.float(), dim=-1).transpose(0, 1),
            torch.cat(rows),
            torch.tensor(frames),
            torch.tensor([len(row) for row in rows]),
            blank=config.pad_token_id,
            reduction="sum",
            zero_infinity=True,
        )

    def transcribe(self, batch: Batch) -> list[Hypothesis]:
        """Return the greedy transcript, or the name of the most likely class, of each clip."""
        best = self.forward(batch).argmax(-1)
        config: Any = self.module.config
        if self.task == "classify":
            return [Hypothesis(str(config.id2label[int(i)])) for i in best]
        rows = [ids[:n].tolist() for ids, n in zip(best, self._speech(batch), strict=True)]
        return [Hypothesis(text.strip()) for text in self.tokenizer.batch_decode(rows)]

    def _speech(self, batch: Batch) -> list[int]:
        """Return the frames of each clip that are speech, after the last convolution."""
        values = batch.inputs["input_values"]
        mask = batch.inputs.get("attention_mask")
        lengths = torch.full((len(values),), values.shape[1]) if mask is None else mask.sum(dim=1)
        return self._frames(lengths)[-1].tolist()

    def _collapse(self, ids: torch.Tensor, n: int) -> torch.Tensor:
        """Return the labels of a best path: repeats merged, blanks dropped."""
        merged = torch.unique_consecutive(ids[:n])
        config: Any = self.module.config
        return merged[merged != config.pad_token_id]


def adapt(
    model: str,
    module: nn.Module,
    layers: tuple[Layer, ...],
    extractor: Any,
    tokenizer: Any,
    batch_size: int,
    settings: Mapping[str, Any],
) -> Wav2Vec2:
    """Return the adapter of a loaded network.

    Raises `FedsimError` for a variant that is not supported, and for a CTC model without tokenizer.
    """
    config: Any = module.config
    if getattr(config, "add_adapter", False):
        raise FedsimError(
            f"model {model!r} has an adapter of strided convolutions on top (add_adapter: true), "
            f"which fedsim does not support; use a checkpoint without it"
        )
    is_ctc = type(module).__name__.endswith("ForCTC")
    if is_ctc and tokenizer is None:
        raise FedsimError(
            f"model {model!r} has a CTC head but no tokenizer files (vocab.json, "
            f"tokenizer_config.json); add them to its folder"
        )
    return Wav2Vec2(
        model, module, layers, extractor, tokenizer if is_ctc else None, batch_size, settings
    )


def default_extractor() -> Any:
    """Return the feature extractor of the published models: zero mean, unit variance per clip."""
    from transformers import Wav2Vec2FeatureExtractor

    return Wav2Vec2FeatureExtractor(do_normalize=True, sampling_rate=SAMPLE_RATE)


def drop_unused(module: nn.Module) -> None:
    """Remove the positional convolution that transformers gives a Conformer and never calls."""
    conformer: Any = getattr(module, "wav2vec2_conformer", None)
    if conformer is not None:
        conformer.encoder.pos_conv_embed = nn.Identity()


def _conv_stage(name: str) -> int | None:
    """Return the number of a layer among the feature extractor's convolutions; None for others."""
    marker = "feature_extractor.conv_layers."
    return int(name.split(marker)[1].split(".")[0]) if marker in name else None


def _has_frames(name: str) -> bool:
    """Return whether a layer's output has one row per frame.

    Relative positions are the same for all clips; the final classifier gets one vector per clip.
    """
    return not name.endswith("linear_pos") and name != "classifier"
