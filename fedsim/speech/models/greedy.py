"""What encoder-decoder models share: greedy decoding until the end, a maximum length or a loop, and
the loss of a teacher-forced pass."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedsim.quant.model import Batch
from fedsim.speech.models.base import Hypothesis
from fedsim.speech.repetition import stop


def decode(
    module: nn.Module,
    encoded: Any,
    prompt: torch.Tensor,
    bounds: Sequence[int],
    end: int,
    never: Sequence[int] = (),
    not_first: Sequence[int] = (),
) -> list[tuple[torch.Tensor, bool]]:
    """Return prompt, tokens and end of each clip, on the processor, and whether it looped.

    A hypothesis is cut at its maximum length or, without an end, where it loops
    (`fedsim.speech.repetition`).

    Args:
        module: of transformers, with `encoder_outputs` and `decoder_input_ids`.
        encoded: what its encoder returned.
        prompt: token ids (B, P) that every hypothesis begins with.
        bounds: tokens of each clip after the prompt, at most.
        end: the token that ends a hypothesis.
        never: tokens that no hypothesis has.
        not_first: tokens with which none begins.
    """
    ids, start = prompt, prompt.shape[1]
    stops: list[tuple[int, bool] | None] = [None] * len(ids)  # None: the clip still runs
    memory, step = _memory(module), ids
    banned = torch.tensor([*never], dtype=torch.long, device=ids.device)
    first = torch.tensor([*never, *not_first], dtype=torch.long, device=ids.device)
    for n in range(max(bounds)):
        out = module(encoder_outputs=encoded, decoder_input_ids=step, use_cache=True, **memory)
        logits = out.logits[:, -1].clone()
        logits[:, banned if n else first] = -torch.inf
        step = logits.argmax(-1, keepdim=True)
        ids = torch.cat([ids, step], dim=1)
        produced = zip(ids[:, start:].tolist(), bounds, strict=True)
        stops = [s or stop(row, end, b) for s, (row, b) in zip(stops, produced, strict=True)]
        if all(stops):
            break
    done = [s for s in stops if s is not None]
    rows = zip(ids.cpu(), done, strict=True)
    return [(row[: start + n], looped) for row, (n, looped) in rows]


def _memory(module: nn.Module) -> dict[str, Any]:
    """Return the argument that holds keys and values of the tokens so far, which the decoder
    updates: transformers calls it `cache` from 5.24 on, `past_key_values` before."""
    from transformers import DynamicCache, EncoderDecoderCache

    names = inspect.signature(type(module).forward).parameters
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    return {"cache" if "cache" in names else "past_key_values": cache}


def hypotheses(tokenizer: Any, decoded: Sequence[tuple[torch.Tensor, bool]]) -> list[Hypothesis]:
    """Return the texts of what `decode` returned."""
    texts = tokenizer.batch_decode([ids.tolist() for ids, _ in decoded], skip_special_tokens=True)
    return [
        Hypothesis(text.strip(), looped) for text, (_, looped) in zip(texts, decoded, strict=True)
    ]


def at_tokens(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    """Return the logits (P, V) at the tokens that a batch has as targets."""
    assert batch.targets is not None
    places = np.flatnonzero(batch.targets.numpy().ravel() != -100)
    return logits.flatten(0, 1)[torch.from_numpy(places).to(logits.device)]


def token_loss(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy against a batch's targets, summed over tokens and clips."""
    assert batch.targets is not None
    if logits.device.type != "cpu":  # CUDA's loss over a plane is not deterministic
        targets = batch.targets.flatten().to(logits.device)
        return F.cross_entropy(
            logits.flatten(0, 1).float(), targets, ignore_index=-100, reduction="sum"
        )
    return F.cross_entropy(
        logits.transpose(1, 2), batch.targets, ignore_index=-100, reduction="sum"
    )
