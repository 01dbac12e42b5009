"""The layers of a model: the parts whose bit depths a plan chooses.

A layer is a module with one weight matrix: a linear map, a 1-D convolution or an embedding table.
Everything else that a model needs (biases, norms, position tables, layers that the user keeps) is a
*leftover*: every model file stores it in half precision, and its bytes count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.utils import parametrize, remove_weight_norm
from torch.nn.utils.weight_norm import WeightNorm

from fedsim.errors import FedsimError, nearest

KINDS: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.Conv1d: "conv1d",
    nn.Embedding: "embedding",
}
"""Module classes whose `weight` can be quantized (subclasses included), and their kind."""

SMALL_PARAMETER = 65_536
"""A parameter of an unknown module with up to this many weights is a leftover; a larger one is an
error."""


@dataclass(frozen=True)
class Layer:
    """One quantizable layer.

    `name` is the path of the module whose output is observed; `shape` the shape of its weight,
    output channels first; `aliases` the other modules that share the very same weight (a tied
    embedding).
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def channels(self) -> int:
        """Number of output channels: the scales of a per-channel quantizer."""
        return self.shape[0]


def find_layers(model: nn.Module, keep: Sequence[str] = ()) -> tuple[Layer, ...]:
    """Return the quantizable layers of `model` in the order of `named_modules`.

    `keep` are names or shell patterns (`*.attention.*`) of layers to leave in full precision. If
    several modules share one weight, the last becomes the layer (in a tied model that is the output
    head, which has an input to quantize, unlike the embedding) and the others become its aliases;
    keeping one of them keeps the weight.

    Raises `FedsimError` for a large parameter in a module of unknown type, for a `keep` that
    matches nothing, and for a model without layers.
    """
    modules = dict(model.named_modules())
    # Only modules that hold state themselves: the name of a container would keep nothing.
    named = modules.keys() & {key.rpartition(".")[0] for key in model.state_dict()}
    unmatched = [k for k in keep if not any(fnmatchcase(name, k) for name in named)]
    if unmatched:
        raise FedsimError(
            f"keep: no layer is called {unmatched[0]!r}: {nearest(unmatched[0], named)}"
        )
    kept = {name for name in named if any(fnmatchcase(name, k) for k in keep)}
    kept_weights = {id(getattr(modules[name], "weight", None)) for name in kept}
    owners: dict[int, list[tuple[str, str]]] = {}
    for name, module in modules.items():
        if name in kept:
            continue
        kind = next((k for cls, k in KINDS.items() if isinstance(module, cls)), None)
        if kind is None:
            _refuse_large(name, module)
            continue
        if id(module.weight) not in kept_weights:
            owners.setdefault(id(module.weight), []).append((name, kind))
    layers = []
    for names in owners.values():
        name, kind = names[-1]
        weight = modules[name].weight
        assert isinstance(weight, torch.Tensor)
        layers.append(Layer(name, kind, tuple(weight.shape), tuple(n for n, _ in names[:-1])))
    if not layers:
        raise FedsimError(
            f"{type(model).__name__} has no layer to quantize; choose a model with "
            f"{', '.join(sorted(KINDS.values()))} layers, and keep fewer of them"
        )
    return tuple(layers)


def plain_weights(model: nn.Module) -> nn.Module:
    """Fold weight norms (of either kind) into plain weights, in place, and return the model.

    The quantizer needs the weight that the layer multiplies with. A weight norm would recompute it
    from its factors in every forward pass.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for tensor in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, str(tensor), leave_parametrized=True)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
    return model


def leftovers(model: nn.Module, layers: Iterable[Layer]) -> dict[str, torch.Tensor]:
    """Return all state of `model` but the layers' weights: name -> tensor, in state-dict order.

    A tensor that several modules share appears once, under its first name.
    """
    state = model.state_dict(keep_vars=True)
    taken = {id(state[f"{layer.name}.weight"]) for layer in layers}
    rest = {}
    for name, tensor in state.items():
        if id(tensor) not in taken:
            taken.add(id(tensor))
            rest[name] = tensor.detach()
    return rest


def _refuse_large(name: str, module: nn.Module) -> None:
    for key, p in module.named_parameters(recurse=False):
        if p.ndim >= 2 and p.numel() > SMALL_PARAMETER:
            raise FedsimError(
                f"layer {name!r} is of unknown type {type(module).__name__} and owns {key!r} with "
                f"{p.numel():,} weights, but fedsim quantizes only "
                f"{', '.join(sorted(KINDS.values()))} layers; add {name!r} to model.keep to leave "
                f"it in full precision"
            )
