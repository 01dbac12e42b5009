"""Memory for activations in a forward pass, measured on the public signal."""

from __future__ import annotations

import torch

from fedsim.speech.models.base import SpeechModel, public_signal


def activation_bytes(model: SpeechModel, seconds: float) -> int:
    """Return the bytes of input and output of the layer with the largest, for one clip.

    A lower bound, in the model's own type: of a runtime that computes layer by layer and frees each
    input after use. What is kept across layers (residuals, a decoder's keys and values) comes on
    top.
    """
    widest = 0

    def record(module: torch.nn.Module, args: tuple, out: torch.Tensor) -> None:
        nonlocal widest
        widest = max(widest, sum(x.nbytes for x in (*args, out) if isinstance(x, torch.Tensor)))

    modules = dict(model.module.named_modules())
    hooks = [modules[layer.name].register_forward_hook(record) for layer in model.layers]
    try:
        with torch.inference_mode():
            for batch, _ in model.batches(public_signal(seconds, n=1)):
                if model.needs_tokens:
                    batch = model.with_tokens(batch, model.own_tokens(batch))
                model.forward(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return widest
