"""Whisper: an encoder over a fixed window of audio, a decoder over tokens.

Sensing and calibration transcribe a clip once, then run one teacher-forced pass over the resulting
tokens. `window_s` shortens the encoder's 30 s window by cutting its table of positions. That is
several times faster on short clips, but it changes the model: check its word errors first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsim.errors import FedsimError, nearest
from fedsim.quant.layers import Layer
from fedsim.quant.model import Batch
from fedsim.speech.models.base import Hypothesis, by_length, padded, placed_batches
from fedsim.speech.models.greedy import at_tokens, decode, hypotheses, token_loss
from fedsim.speech.models.whisper_rules import complete_rules
from fedsim.speech.models.window import FRAMES_PER_SECOND, window_seconds, windowed

FIRST = "model.encoder.conv1"
"""The first layer, whose frames are those of the mel spectrogram."""

TOKENS_PER_SECOND, EXTRA_TOKENS = 12, 8
"""A hypothesis is cut at 12 tokens per second of audio plus 8: the fastest speech needs fewer."""


@dataclass(frozen=True)
class Whisper:
    """Adapter for `WhisperForConditionalGeneration`; see
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

    @property
    def window(self) -> float:
        """Seconds of audio that the encoder takes."""
        return window_seconds(self.module)

    def batches(
        self, clips: Sequence[np.ndarray], language: str | None = None
    ) -> Iterator[tuple[Batch, list[int]]]:
        """Yield batches by length. `language` is a code or name ("it", "it_it", "italian"); with
        None the model detects it for each clip."""
        code = self.language_code(language)
        groups = by_length(clips, self.batch_size, exact=False)
        return placed_batches(
            self.module, groups, lambda places: self._encode([clips[i] for i in places], code)
        )

    def _encode(self, clips: list[np.ndarray], language: str | None) -> Batch:
        features, mel = windowed(self.module, self.extractor, clips)
        encoder = (mel + 1) // 2
        speech = {FIRST: mel}  # even if the user keeps that layer: hypotheses are cut by it
        for layer in self.layers:
            if layer.name.endswith("encoder.conv2") or _reads_encoder(layer.name):
                speech[layer.name] = encoder
        return Batch({"input_features": features}, speech=speech, language=language)

    def own_tokens(self, batch: Batch) -> list[torch.Tensor]:
        """Return the prompt and greedy transcript of each clip, cut at its maximum length or where
        it loops."""
        return [ids for ids, _ in self._generate(batch)]

    def with_tokens(self, batch: Batch, tokens: Sequence[torch.Tensor]) -> Batch:
        """Return the batch with `tokens` as the decoder's input and, one step later, its
        targets."""
        rules: Any = self.module.generation_config
        prompt = 4 if getattr(rules, "is_multilingual", False) else 2
        config: Any = self.module.config
        most = max(len(row) for row in tokens) - 1
        length = min(padded(most, self.token_grain), config.max_target_positions) + 1
        ids = torch.full((len(tokens), length), int(rules.eos_token_id))
        targets = torch.full((len(tokens), length - 1), -100)
        for i, row in enumerate(tokens):
            ids[i, : len(row)] = row
            targets[i, prompt - 1 : len(row) - 1] = row[prompt:]
        used = torch.tensor([len(row) - 1 for row in tokens])
        counts = {
            layer.name: used
            for layer in self.layers
            if ".encoder." not in layer.name and not _reads_encoder(layer.name)
        }
        device = batch.inputs["input_features"].device
        return replace(
            batch,
            inputs=batch.inputs | {"decoder_input_ids": ids[:, :-1].to(device)},
            frames_in=counts,
            frames_out=counts,
            targets=targets,
        )

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return logits (B, U, V) of a batch with tokens: one teacher-forced pass."""
        if "decoder_input_ids" not in batch.inputs:
            raise ValueError("a Whisper batch needs tokens before a forward pass")
        return self.module(**batch.inputs, use_cache=False).logits

    def answers(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits (P, V) of all tokens after the prompt."""
        return at_tokens(batch, logits)

    def loss(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy against the produced tokens, summed over tokens and clips."""
        return token_loss(batch, logits)

    def transcribe(self, batch: Batch) -> list[Hypothesis]:
        """Return the greedy transcript of each clip."""
        return hypotheses(self.tokenizer, self._generate(batch))

    def _generate(self, batch: Batch) -> list[tuple[torch.Tensor, bool]]:
        """Decode greedily; return prompt, tokens and end of each clip, and whether it looped.

        A hypothesis is cut at its maximum length or, without an end, where it loops
        (`fedsim.speech.repetition`).
        """
        module: Any = self.module
        rules: Any = module.generation_config
        encoded = module.model.encoder(batch.inputs["input_features"])
        ids = self._prompt(batch, encoded)
        prompt = ids.shape[1]
        most = module.config.max_target_positions - prompt
        bounds = [
            min(most, EXTRA_TOKENS + math.ceil(TOKENS_PER_SECOND * (frames / FRAMES_PER_SECOND)))
            for frames in batch.speech[FIRST].tolist()
        ]
        return decode(
            module,
            encoded,
            ids,
            bounds,
            int(rules.eos_token_id),
            never=tuple(rules.suppress_tokens or ()),
            not_first=tuple(rules.begin_suppress_tokens or ()),
        )

    def _prompt(self, batch: Batch, encoded: Any) -> torch.Tensor:
        """Return start of transcript, language, task, no timestamps (B, 4); without language and
        task of an English-only model (B, 2)."""
        module: Any = self.module
        rules: Any = module.generation_config
        features = batch.inputs["input_features"]
        n, device = len(features), features.device
        start = torch.full((n, 1), int(rules.decoder_start_token_id), device=device)
        quiet = torch.full((n, 1), int(rules.no_timestamps_token_id), device=device)
        if not getattr(rules, "is_multilingual", False):
            return torch.cat([start, quiet], dim=1)
        if batch.language is None:  # the model names the language: the likeliest of its tokens
            logits = module(encoder_outputs=encoded, decoder_input_ids=start).logits[:, -1]
            known = torch.tensor(sorted(rules.lang_to_id.values()), device=device)
            language = known[logits[:, known].argmax(-1)][:, None]
        else:
            code = int(rules.lang_to_id[f"<|{batch.language}|>"])
            language = torch.full((n, 1), code, device=device)
        task = torch.full((n, 1), int(rules.task_to_id["transcribe"]), device=device)
        return torch.cat([start, language, task, quiet], dim=1)

    def language_code(self, language: str | None) -> str | None:
        """Return the Whisper code of a language given as code, locale or English name.

        Raises `FedsimError` for a language that the model does not know.
        """
        if language is None:
            return None
        from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

        word = language.strip().lower()
        short = word.split("_")[0].split("-")[0]
        code = word if word in LANGUAGES else TO_LANGUAGE_CODE.get(word, short)
        if code not in LANGUAGES:
            raise FedsimError(
                f"Whisper knows no language {language!r}: {nearest(word, TO_LANGUAGE_CODE)}; use "
                f"an ISO code (it), a locale (it_it) or an English name (italian)"
            )
        rules: Any = self.module.generation_config
        if getattr(rules, "is_multilingual", False) and f"<|{code}|>" not in rules.lang_to_id:
            raise FedsimError(
                f"model {self.id!r} knows no language {language!r}; give one of its "
                f"{len(rules.lang_to_id)} languages, or none to have it detected"
            )
        return code


def adapt(
    model: str,
    module: nn.Module,
    layers: tuple[Layer, ...],
    extractor: Any,
    tokenizer: Any,
    batch_size: int,
    settings: Mapping[str, Any],
) -> Whisper:
    """Return the adapter of a loaded network; raise `FedsimError` if its tokenizer is missing,
    or lacks a token of the prompt that the checkpoint does not name."""
    config: Any = module.config
    # For a folder without tokenizer files transformers makes up an empty tokenizer.
    if tokenizer is None or len(tokenizer) < config.vocab_size // 2:
        raise FedsimError(
            f"model {model!r} has no tokenizer files (tokenizer.json, tokenizer_config.json); add "
            f"them to its folder"
        )
    complete_rules(model, module, tokenizer)
    return Whisper(model, module, layers, extractor, tokenizer, batch_size, settings)


def _reads_encoder(name: str) -> bool:
    """Return whether a layer's input is a sequence of encoder frames."""
    cross = "encoder_attn.k_proj" in name or "encoder_attn.v_proj" in name
    return cross or ".encoder.layers." in name
