"""Greedy decoding of an encoder-decoder model: tokens until the end, a maximum length or a loop."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fedsim.speech.repetition import stop


def decode(
    module: nn.Module,
    encoded: Any,
    prompt: torch.Tensor,
    bounds: torch.Tensor,
    end: int,
    never: Sequence[int] = (),
    not_first: Sequence[int] = (),
) -> list[tuple[torch.Tensor, bool]]:
    """Return prompt, tokens and end of each clip, and whether it looped.

    A hypothesis is cut at its maximum length or, without an end, where it loops
    (`fedsim.speech.repetition`).

    Args:
        module: of transformers, with `encoder_outputs` and `decoder_input_ids`.
        encoded: what its encoder returned.
        prompt: token ids (B, P) that every hypothesis begins with.
        bounds: tokens of each clip after the prompt, at most (B,).
        end: the token that ends a hypothesis.
        never: tokens that no hypothesis has.
        not_first: tokens with which none begins.
    """
    ids, start = prompt, prompt.shape[1]
    stops: list[tuple[int, bool] | None] = [None] * len(ids)  # None: the clip still runs
    memory, step = _memory(module), ids
    for n in range(int(bounds.max())):
        out = module(encoder_outputs=encoded, decoder_input_ids=step, use_cache=True, **memory)
        logits = out.logits[:, -1].clone()
        logits[:, [*never, *(() if n else not_first)]] = -torch.inf
        step = logits.argmax(-1, keepdim=True)
        ids = torch.cat([ids, step], dim=1)
        produced = zip(ids[:, start:].tolist(), bounds.tolist(), strict=True)
        stops = [s or stop(row, end, b) for s, (row, b) in zip(stops, produced, strict=True)]
        if all(stops):
            break
    done = [s for s in stops if s is not None]
    return [(row[: start + n], looped) for row, (n, looped) in zip(ids, done, strict=True)]


def _memory(module: nn.Module) -> dict[str, Any]:
    """Return the argument that holds keys and values of the tokens so far, which the decoder
    updates: transformers calls it `cache` from 5.24 on, `past_key_values` before."""
    from transformers import DynamicCache, EncoderDecoderCache

    names = inspect.signature(type(module).forward).parameters
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    return {"cache" if "cache" in names else "past_key_values": cache}
