"""How much memory a model's weights take while a device senses, in each of three modes.

full       every weight in full precision: float32, or the type in which the model was loaded
streamed   one layer's weight at a time, read from storage (`quant/stream.py`)
proxy      every layer packed at 8 bits, one at a time in full precision (`quant/proxy.py`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fedsim.quant.layers import Layer
from fedsim.quant.proxy import BITS, FORMAT

MODES = ("full", "streamed", "proxy")


def choose_mode(peaks: Mapping[str, int], memory_bytes: int | None, little: str) -> str | None:
    """Return the mode in which a device senses, or None if none fits its memory.

    Args:
        peaks: `peak_bytes`, plus whatever must fit beside the weights.
        memory_bytes: the device's memory; None if it is not limited.
        little: the mode, "streamed" or "proxy", for a device that the full model does not fit. If
            that does not fit either, "streamed", which takes least, is tried last.
    """
    modes = ("full", little, "streamed")
    return next((m for m in modes if memory_bytes is None or peaks[m] <= memory_bytes), None)


def proxy_bytes(layers: Sequence[Layer]) -> int:
    """Return the bytes of a proxy's packed layers."""
    return sum(
        FORMAT.code_bytes(layer.shape, BITS) + FORMAT.scale_bytes(layer.shape) for layer in layers
    )


def loaded_bytes(
    layers: Sequence[Layer],
    leftovers: Mapping[str, torch.Tensor],
    packed: int,
    weight_bytes: int = 4,
) -> int:
    """Return the peak bytes of weights in memory where layers stay packed, in `packed` bytes, and
    one at a time is in full precision. The rest is as in `peak_bytes`."""
    rest = sum(t.nbytes for t in leftovers.values())
    return rest + packed + weight_bytes * max(layer.n_weights for layer in layers)


def peak_bytes(
    layers: Sequence[Layer], leftovers: Mapping[str, torch.Tensor], weight_bytes: int = 4
) -> dict[str, int]:
    """Return mode -> the peak bytes of weights in memory while a device senses.

    `leftovers` is the model's state that belongs to no layer, as the model computes with it; it
    counts in every mode. A weight in full precision takes `weight_bytes`. Activations and the
    samples of layers' outputs come on top: they depend on the clips and are the same in every mode.
    A measure that compares with a rounded weight (l1, l2, frobenius, spectral, kl) needs the bytes
    of the largest layer once more.
    """
    rest = sum(t.nbytes for t in leftovers.values())
    sizes = [weight_bytes * layer.n_weights for layer in layers]
    proxy = loaded_bytes(layers, leftovers, proxy_bytes(layers), weight_bytes)
    peaks = (rest + sum(sizes), rest + max(sizes), proxy)
    return dict(zip(MODES, peaks, strict=True))
