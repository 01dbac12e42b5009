"""A model without its layers' weights: each comes when its layer is called, and goes again.

For a device whose memory does not hold the model in full precision. Where a weight comes from is
the business of a *source*, a function from layer to weight: `quant/stream.py` reads it from
storage, `quant/proxy.py` unpacks it from 8 bits.
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
"""layer -> its weight, float32 of the layer's shape, a new tensor at every call."""

_FETCH: dict[nn.Module, Callable[[], None]] = {}
"""Of each module whose weight is on demand: what puts the weight there."""


@contextmanager
def on_demand(model: Quantizable, source: Source) -> Iterator[None]:
    """Keep the weights of all layers out of `model` while open, but for one at a time.

    Between its calls a layer's parameter is an empty tensor; so is that of every module that shares
    the weight. `source` is asked when a layer is called and the weight is not there: once for calls
    in a row, again when another layer came between. A weight stays until the next one is needed,
    and not only until the call returns, so that hooks behind the call still find it.

    Norms, biases and all else that belongs to no layer stay. At the end the layers hold again what
    they held before. For passes without gradients: a graph would hold every weight that it needs.
    """
    modules = dict(model.module.named_modules())
    holders: dict[str, Any] = {a.name: modules[a.name].weight for a in model.layers}
    before = {name: holder.data for name, holder in holders.items()}
    absent = torch.empty(0)
    there: Any = None  # the parameter whose weight is there

    def fetch(layer: Layer) -> None:
        nonlocal there
        holder = holders[layer.name]
        if there is holder:
            return
        if there is not None:
            there.data = absent  # first, so that two weights are never there at once
        there = None
        with torch.inference_mode(False):  # a parameter takes no tensor of inference mode
            holder.data = source(layer)
        there = holder

    fetches = {
        modules[name]: partial(fetch, layer)
        for layer in model.layers
        for name in (layer.name, *layer.aliases)
    }
    if fetches.keys() & _FETCH.keys():
        raise ValueError("the weights of this model are on demand already")
    _FETCH.update(fetches)
    hooks = [module.register_forward_pre_hook(_before_call) for module in fetches]
    try:
        for holder in holders.values():
            holder.data = absent
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in fetches:
            del _FETCH[module]
        for name, holder in holders.items():
            holder.data = before[name]


def weight_of(module: nn.Module) -> torch.Tensor:
    """Return the weight of a layer's module, fetched first where it is on demand."""
    if module in _FETCH:
        _FETCH[module]()
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _before_call(module: nn.Module, args: tuple) -> None:
    _FETCH[module]()
