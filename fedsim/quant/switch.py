"""Turning a loaded model into one client's model after another, by exchanging pointers."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch
from torch import nn

from fedsim.quant.activations import InputFormat, quantize_input
from fedsim.quant.integers import IntegerWeight, computable, integer_linear
from fedsim.quant.layers import leftovers
from fedsim.quant.model import Quantizable
from fedsim.quant.rows import Rows, look_up, spread_logits


class Switch:
    """Holds a model's full-precision tensors and puts others in their place.

    No weight is copied: parameters point at the tensors that are installed, which several models
    may share and which must therefore not be written to.
    """

    def __init__(self, model: Quantizable) -> None:
        # Only the layers' modules: a reference to the model would keep it in `_SWITCHES` for ever.
        modules = dict(model.module.named_modules())
        self._modules = {
            name: modules[name] for layer in model.layers for name in (layer.name, *layer.aliases)
        }
        self._layers = model.layers
        state = model.module.state_dict(keep_vars=True)
        self._holders = dict(state)
        self._full = {name: holder.data for name, holder in state.items()}
        self._rest = leftovers(model.module, model.layers).keys()
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._replaced: list[nn.Module] = []  # those with another `forward` than their class's

    def full_weights(self) -> dict[str, torch.Tensor]:
        """Return the full-precision weight of each layer, by layer name, where the model is."""
        return {layer.name: self._full[f"{layer.name}.weight"] for layer in self._layers}

    def full_leftovers(self) -> dict[str, torch.Tensor]:
        """Return the full-precision state that belongs to no layer, by state name."""
        return {name: self._full[name] for name in self._rest}

    def full_bytes(self) -> int:
        """Return the bytes of the full-precision model, each tied weight counted once."""
        return sum(t.nbytes for t in (self.full_weights() | self.full_leftovers()).values())

    def install(
        self,
        weights: Mapping[str, torch.Tensor],
        leftovers: Mapping[str, torch.Tensor],
        inputs: Mapping[str, InputFormat],
        integers: Mapping[str, IntegerWeight | None] | None = None,
        rows: Rows | None = None,
    ) -> None:
        """Put `weights` (by layer name), `leftovers` (by state name) and `inputs` in place.

        Inputs of layers that are missing in `inputs` stay in full precision. A linear layer that
        has an entry in `integers` (the same weight as codes) is computed in integers if its input
        is quantized over a static range to at most 8 bits: no gradient passes through it, and its
        entry in `weights` is not read. All of them are where the model computes, which for
        `integers` is the processor.

        `rows` say that the weight of one layer has only these rows: logits of the others are -inf,
        and a look-up of one of them gives zeros.
        """
        self._unhook()
        for name, tensor in leftovers.items():
            self._holders[name].data = tensor
        for layer in self._layers:
            # Tied modules hold the same parameter, so one assignment serves the aliases too.
            self._holders[f"{layer.name}.weight"].data = weights[layer.name]
        for name, how in inputs.items():
            if how.bits == 0:
                continue
            module, codes = self._modules[name], (integers or {}).get(name)
            if codes is not None and how.range and computable(module, how.range, how.bits):
                bias = self._holders.get(f"{name}.bias")
                # Only this module's: another that shares the weight may be an embedding.
                module.forward = integer_linear(codes, bias, how.range, how.bits)
                self._replaced.append(module)
            else:
                self._hooks.append(module.register_forward_pre_hook(_quantize_input(how)))
        if rows is not None:
            self._trim(rows)

    def restore(self) -> None:
        """Put the full-precision model back."""
        self._unhook()
        for name, holder in self._holders.items():
            holder.data = self._full[name]

    def _trim(self, rows: Rows) -> None:
        """Let the modules of a layer of which only some rows are installed use these."""
        layer = next(layer for layer in self._layers if layer.name == rows.layer)
        weight = self._holders[f"{layer.name}.weight"].data
        for name in (layer.name, *layer.aliases):
            module = self._modules[name]
            if isinstance(module, nn.Embedding):
                vars(module)["forward"] = look_up(weight, rows)
                self._replaced.append(module)
            else:
                spread = spread_logits(rows, weight.device)
                self._hooks.append(module.register_forward_hook(spread))

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for module in self._replaced:
            vars(module).pop("forward", None)  # the class's own is used again
        self._hooks, self._replaced = [], []


_SWITCHES: WeakKeyDictionary[nn.Module, Switch] = WeakKeyDictionary()


def switch_of(model: Quantizable) -> Switch:
    """Return the one switch of a loaded model; it must be made while the model is in full
    precision."""
    if model.module not in _SWITCHES:
        _SWITCHES[model.module] = Switch(model)
    return _SWITCHES[model.module]


def _quantize_input(how: InputFormat):  # type: ignore[no-untyped-def]
    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (quantize_input(args[0], how), *args[1:])

    return hook
