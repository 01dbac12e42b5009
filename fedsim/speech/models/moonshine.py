"""Moonshine: an encoder of raw audio, a decoder over tokens; small and English.

Behind its first convolution is a norm over the whole clip, which padding would change: the clips
of a batch are of one length. Sensing and calibration transcribe a clip once, then run one
teacher-forced pass over the resulting tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedsim.errors import FedsimError
from fedsim.quant.layers import Layer
from fedsim.quant.model import Batch
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.models.base import Hypothesis, by_length, padded, placed_batches
from fedsim.speech.models.greedy import at_tokens, decode, hypotheses, token_loss

TOKENS_PER_SECOND, EXTRA_TOKENS = 13, 8
"""A hypothesis is cut at 13 tokens per second of audio plus 8. The model's authors advise 6.5 per
second against loops in English, of which speech in other languages needs more."""


@dataclass(frozen=True)
class Moonshine:
    """Adapter for `MoonshineForConditionalGeneration`; see
    `fedsim.speech.models.base.SpeechModel`."""

    id: str
    module: nn.Module
    layers: tuple[Layer, ...]
    extractor: Any
    tokenizer: Any
    batch_size: int
    settings: Mapping[str, Any]
    task: str = "transcribe"
    needs_tokens: bool = True
    token_grain: int = 1
    """Padded tokens are a multiple of this many long."""

    def batches(
        self, clips: Sequence[np.ndarray], language: str | None = None
    ) -> Iterator[tuple[Batch, list[int]]]:
        """Yield batches of clips of one length; `language` is not used."""
        groups = by_length(clips, self.batch_size, exact=True)
        return placed_batches(
            self.module, groups, lambda places: self._encode([clips[i] for i in places])
        )

    def _encode(self, clips: list[np.ndarray]) -> Batch:
        inputs = self.extractor(
            clips,
            sampling_rate=SAMPLE_RATE,
            padding=True,
            return_attention_mask=False,
            return_tensors="pt",
        )
        return Batch({"input_values": inputs["input_values"].float()})

    def own_tokens(self, batch: Batch) -> list[torch.Tensor]:
        """Return start and greedy transcript of each clip, cut at its maximum length or where it
        loops."""
        return [ids for ids, _ in self._generate(batch)]

    def with_tokens(self, batch: Batch, tokens: Sequence[torch.Tensor]) -> Batch:
        """Return the batch with `tokens` as the decoder's input and, one step later, its
        targets."""
        ids = torch.nn.utils.rnn.pad_sequence(list(tokens), batch_first=True, padding_value=-100)
        config: Any = self.module.config
        used = ids.shape[1] - 1
        length = min(padded(used, self.token_grain), config.max_position_embeddings)
        ids = F.pad(ids, (0, max(0, length - used)), value=-100)
        tokens_of = torch.tensor([len(row) - 1 for row in tokens])
        counts = {
            layer.name: tokens_of
            for layer in self.layers
            if not layer.name.startswith("model.encoder.") and not _reads_encoder(layer.name)
        }
        device = batch.inputs["input_values"].device
        inputs = {"decoder_input_ids": ids[:, :-1].clamp(min=0).to(device)}
        return replace(
            batch,
            inputs=batch.inputs | inputs,
            frames_in=counts,
            frames_out=counts,
            targets=ids[:, 1:],
        )

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return logits (B, U, V) of a batch with tokens: one teacher-forced pass."""
        if "decoder_input_ids" not in batch.inputs:
            raise ValueError("a Moonshine batch needs tokens before a forward pass")
        return self.module(**batch.inputs, use_cache=False).logits

    def answers(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits (P, V) of all tokens."""
        return at_tokens(batch, logits)

    def loss(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy against the produced tokens, summed over tokens and clips."""
        return token_loss(batch, logits)

    def transcribe(self, batch: Batch) -> list[Hypothesis]:
        """Return the greedy transcript of each clip."""
        return hypotheses(self.tokenizer, self._generate(batch))

    def _generate(self, batch: Batch) -> list[tuple[torch.Tensor, bool]]:
        """Decode greedily; see `fedsim.speech.models.greedy.decode`."""
        module: Any = self.module
        config: Any = module.config
        values = batch.inputs["input_values"]
        clips, samples = values.shape
        most = EXTRA_TOKENS + -(-TOKENS_PER_SECOND * samples // SAMPLE_RATE)
        bounds = [min(most, config.max_position_embeddings - 1)] * clips
        prompt = torch.full((clips, 1), int(config.decoder_start_token_id), device=values.device)
        encoded = module.model.encoder(values)
        return decode(module, encoded, prompt, bounds, config.eos_token_id)


def adapt(
    model: str,
    module: nn.Module,
    layers: tuple[Layer, ...],
    extractor: Any,
    tokenizer: Any,
    batch_size: int,
    settings: Mapping[str, Any],
) -> Moonshine:
    """Return the adapter of a loaded network.

    Raises `FedsimError` for a model with several end tokens, and one without tokenizer.
    """
    config: Any = module.config
    if not isinstance(config.eos_token_id, int):
        raise FedsimError(
            f"model {model!r} has eos_token_id {config.eos_token_id}, but fedsim ends a transcript"
            f" at one token; set one in its config.json"
        )
    # For a folder without tokenizer files transformers makes up an empty tokenizer.
    if tokenizer is None or len(tokenizer) <= config.eos_token_id:
        raise FedsimError(
            f"model {model!r} has no tokenizer files (tokenizer.json, tokenizer_config.json); add "
            f"them to its folder"
        )
    return Moonshine(model, module, layers, extractor, tokenizer, batch_size, settings)


def _reads_encoder(name: str) -> bool:
    """Return whether a layer of the decoder has a sequence of encoder frames as its input."""
    return name.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj"))
