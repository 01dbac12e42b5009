"""Multiply-accumulates (MACs) of a model's layers, counted on the public signal.

A layer's MACs are its weights times the positions that it is applied to (0 for a table, which is
looked up). Their number grows with the seconds of audio (an encoder), with the tokens (a decoder)
or only with the clips (an encoder with a window of fixed length): three probes separate the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedsim.speech.models.base import SpeechModel, public_signal

_SECONDS = (0.5, 1.0)  # not padded: whole tenths (`speech/models/wav2vec2.py`)
_TOKENS = (4, 8)


@dataclass(frozen=True)
class Macs:
    """MACs of each layer in a forward pass, (L,) each: per clip, per second of it, per token."""

    clip: tuple[float, ...]
    second: tuple[float, ...]
    token: tuple[float, ...]

    def of(self, clips: float, seconds: float, tokens: float) -> np.ndarray:
        """Return the MACs of each layer in a pass over this much audio, float64 (L,)."""
        clip, second, token = map(np.asarray, (self.clip, self.second, self.token))
        return np.maximum(clip * clips + second * seconds + token * tokens, 0)


def count_macs(model: SpeechModel) -> Macs:
    """Return the MACs of `model.layers`, in order.

    Products of activations with activations (attention) and operations outside these layers are not
    counted.
    """
    short, long = _SECONDS
    few, many = _TOKENS
    base = _probe(model, short, few)
    second = (_probe(model, long, few) - base) / (long - short)
    token = (_probe(model, short, many) - base) / (many - few)
    clip = base - second * short - token * few
    return Macs(tuple(clip.tolist()), tuple(second.tolist()), tuple(token.tolist()))


def _probe(model: SpeechModel, seconds: float, tokens: int) -> np.ndarray:
    """Return the MACs of each layer (L,) for one clip of this length and this many tokens."""
    counted = np.zeros(len(model.layers))
    modules = dict(model.module.named_modules())
    hooks = [
        modules[name].register_forward_hook(_counter(counted, i, layer.n_weights, layer.channels))
        for i, layer in enumerate(model.layers)
        for name in (layer.name, *layer.aliases)
        if not isinstance(modules[name], nn.Embedding)
    ]
    try:
        with torch.inference_mode():
            for batch, _ in model.batches(public_signal(seconds, n=1)):
                if model.needs_tokens:
                    start = model.own_tokens(batch)[0][:1]
                    counted[:] = 0  # transcribing does not count: the tokens stand in for it
                    batch = model.with_tokens(batch, [start.repeat(tokens)])
                model.forward(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return counted


def _counter(
    counted: np.ndarray, index: int, weights: int, channels: int
) -> Callable[[nn.Module, tuple, torch.Tensor], None]:
    def hook(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        counted[index] += weights * (output.numel() // channels)

    return hook
