"""A model without its layers' weights: each is fetched when its layer is called, then released.

For a device whose memory cannot hold the model in full precision. A *source*, a function from layer
to weight, provides the weights: `quant/stream.py` reads them from storage, `quant/proxy.py` unpacks
them from 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from fedsim.quant.layers import Layer
from fedsim.quant.model import Quantizable

Source = Callable[[Layer], torch.Tensor]
"""f(layer) -> its weight, of the layer's shape, a new tensor at every call; it is put where the
model is, and in its type."""

_FETCH: dict[nn.Module, Callable[[], None]] = {}
"""For each module whose weight is on demand: the function that puts the weight in place."""


@contextmanager
def on_demand(model: Quantizable, source: Source) -> Iterator[None]:
    """Keep at most one layer's weight at a time in `model`, while open.

    Between its calls a layer's parameter is an empty tensor; so is that of every module that shares
    the weight. `source` is called when a layer is called and its weight is not present: once for
    consecutive calls, again when another layer was called in between. A weight stays until the next
    one is needed, not only until the call returns, so that forward hooks still find it.

    Norms, biases and all else that belongs to no layer stay. On exit the layers have their old
    weights again. Use it without gradients: a graph would hold every weight that it needs.

    Raises `ValueError` if the weights of `model` are on demand already.
    """
    modules = dict(model.module.named_modules())
    holders: dict[str, Any] = {layer.name: modules[layer.name].weight for layer in model.layers}
    before = {name: holder.data for name, holder in holders.items()}
    like = {name: data.new_empty(0) for name, data in before.items()}
    present: str | None = None  # the layer whose parameter holds its weight now

    def fetch(layer: Layer) -> None:
        nonlocal present
        if present == layer.name:
            return
        if present is not None:
            holders[present].data = like[present]  # first: never are two weights in memory at once
        present = None
        with torch.inference_mode(False):  # a parameter cannot hold an inference-mode tensor
            holders[layer.name].data = source(layer).to(like[layer.name])
        present = layer.name

    fetches = {
        modules[name]: partial(fetch, layer)
        for layer in model.layers
        for name in (layer.name, *layer.aliases)
    }
    if fetches.keys() & _FETCH.keys():
        raise ValueError("the weights of this model are on demand already; close that context")
    _FETCH.update(fetches)
    hooks = [module.register_forward_pre_hook(_before_call) for module in fetches]
    try:
        for name, holder in holders.items():
            holder.data = like[name]
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in fetches:
            del _FETCH[module]
        for name, holder in holders.items():
            holder.data = before[name]


def weight_of(module: nn.Module) -> torch.Tensor:
    """Return the weight of a layer's module, fetching it first if it is on demand."""
    if module in _FETCH:
        _FETCH[module]()
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _before_call(module: nn.Module, args: tuple) -> None:
    _FETCH[module]()
