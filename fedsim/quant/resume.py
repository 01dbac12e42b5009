"""A forward pass that begins in the middle: what runs before a layer is kept and handed back.

For evaluating one change of one layer after another, each of which leaves everything before it as
it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fedsim.quant.accelerated import on_processor
from fedsim.quant.layers import Layer
from fedsim.quant.model import Batch, Quantizable
from fedsim.quant.sample import fetched


@dataclass
class Trace:
    """The full-precision pass over one batch: when modules ran, and what those returned that a
    later layer can be spared."""

    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    blocks: dict[str, str] = field(default_factory=dict)
    """Module of a layer (aliases too) -> the block that it is part of."""
    starts: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)


def traced(model: Quantizable, batch: Batch) -> Trace:
    """Run the network on a batch in full precision; return its trace."""
    modules = dict(model.module.named_modules())
    names = [name for layer in model.layers for name in (layer.name, *layer.aliases)]
    trace = Trace(blocks={name: _block(name, modules) for name in names}, modules=modules)
    kept = _worth_keeping(trace.blocks.values(), modules)
    clock = iter(range(1 << 62))
    given: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    unkept: set[str] = set()
    written: dict[str, list[torch.Tensor]] = {}  # flags, on a GPU: looked at after the pass

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if name in trace.starts:
                unkept.add(name)  # which of its outputs would have to be handed back?
            trace.starts.setdefault(name, next(clock))
            if name in kept:
                given[name] = [
                    (value, value.clone())
                    for value in (*args, *kwargs.values())
                    if isinstance(value, torch.Tensor)
                ]

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            trace.ends[name] = next(clock)
            if name in kept:
                flags = _writes(given.pop(name), output)
                if isinstance(flags, list):
                    written.setdefault(name, []).extend(flags)
                elif flags:
                    unkept.add(name)  # what else it does cannot be handed back
                trace.outputs[name] = copy.deepcopy(output)  # the network may write into its own

        return hook

    watched = {*kept, *trace.blocks.values()}
    handles = [
        modules[name].register_forward_pre_hook(before(name), with_kwargs=True) for name in watched
    ]
    handles += [modules[name].register_forward_hook(after(name)) for name in watched]
    try:
        trace.logits = model.answers(batch, model.forward(batch))
    finally:
        for handle in handles:
            handle.remove()
    flagged = [name for name, flags in written.items() for _ in flags]
    found = fetched([flag for flags in written.values() for flag in flags])
    unkept.update(name for name, flag in zip(flagged, found, strict=True) if flag)
    for name in unkept:
        trace.outputs.pop(name, None)
    return trace


def _writes(
    given: Sequence[tuple[torch.Tensor, torch.Tensor]], output: Any
) -> bool | list[torch.Tensor]:
    """Return whether a module changed a tensor that it was given (now, and as it was), or returned
    one of them, into which the network may write afterwards.

    Of tensors on a GPU, which takes time to answer: flags, any of which says so.
    """
    if any(
        now.shape != was.shape
        or (isinstance(output, torch.Tensor) and output.data_ptr() == now.data_ptr())
        for now, was in given
    ):
        return True
    if all(on_processor(now) for now, _ in given):
        return any(not torch.equal(now, was) for now, was in given)
    return [(now != was).any() for now, was in given]


def _block(name: str, modules: dict[str, nn.Module]) -> str:
    """Return the outermost element of a module list that contains a module, else its own name."""
    parts = name.split(".")
    for i in range(1, len(parts)):
        if isinstance(modules[".".join(parts[:i])], nn.ModuleList):
            return ".".join(parts[: i + 1])
    return name


def _worth_keeping(blocks: Iterable[str], modules: dict[str, nn.Module]) -> set[str]:
    """Return the blocks, and the neighbours of everything that contains one: together they are the
    whole network."""
    around = {
        ".".join(parts[:i])
        for parts in (block.split(".") for block in blocks)
        for i in range(len(parts))
    }
    children = {
        f"{name}.{child}".lstrip(".")
        for name in around
        for child, module in modules[name].named_children()
    }
    return {name for name in children if not isinstance(modules[name], nn.ModuleList)} - {""}


@contextmanager
def resumed(trace: Trace, layer: Layer) -> Iterator[None]:
    """Hand back the outputs of everything that ends before the layer's block, while open."""
    names = (layer.name, *layer.aliases)
    start = min(trace.starts.get(trace.blocks[name], 1 << 62) for name in names)
    done = {n for n in trace.outputs if trace.ends.get(n, start) < start}
    # A module inside another that is done is never called.
    outer = [n for n in done if not any(n.startswith(f"{other}.") for other in done)]
    places = [vars(trace.modules[name]) for name in outer]
    own = [place.get("forward") for place in places]  # a user may have wrapped a module
    for name, place in zip(outer, places, strict=True):
        output = trace.outputs[name]
        place["forward"] = lambda *args, output=output, **kwargs: copy.deepcopy(output)
    try:
        yield
    finally:
        for place, forward in zip(places, own, strict=True):
            del place["forward"]
            if forward is not None:
                place["forward"] = forward
