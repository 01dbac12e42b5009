"""Models on a GPU that is not there: torch's fake tensors, which have shapes and devices alone.

An operation on tensors of two devices raises `FakeTensorDeviceMismatchError`. Numbers that are
asked for do not exist: `Waits` makes them up, and records who asked, since on a real GPU that is
where the program waits.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fedsim

HOME = str(Path(fedsim.__file__).parent)


GPU = torch.device("cuda" if torch.cuda.is_available() else "meta")
"""Without a GPU the device "meta", also where torch is built for CUDA: it would ask for a driver.

On both, tensors have no numbers, and are mixed with those of the processor no more than real ones.
"""

_ATEN = torch.ops.aten
_NUMBERS = (_ATEN._local_scalar_dense.default, _ATEN.item.default)
_AS_THEY_ARE = (_ATEN.resolve_conj.default, _ATEN.resolve_neg.default)
"""What `tolist` calls first; in inference mode modes see these, and would return fake tensors."""


class Waits(TorchDispatchMode):
    """Answers 0 to whoever asks for a number, and counts by which function of fedsim that was."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _AS_THEY_ARE and type(args[0]) is torch.Tensor:
            return args[0]  # of the processor: its numbers are there
        if func in _NUMBERS:
            self.counts[_asking()] += 1
            kind = args[0].dtype
            return False if kind == torch.bool else 0.0 if kind.is_floating_point else 0
        return func(*args, **(kwargs or {}))


def _asking() -> str:
    """The innermost function of fedsim that is running."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(HOME):
        frame = frame.f_back  # type: ignore[assignment]
    return frame.f_code.co_name if frame is not None else "a test"


@dataclass
class FakeGpu:
    """An open fake GPU: the model that is on it, and who waited for it so far."""

    model: Any
    waits: Waits


@contextmanager
def fake_gpu(model: Any = None) -> Iterator[FakeGpu]:
    """Put a copy of a speech model on the GPU.

    While open, every tensor that is made is a fake one, and real ones become fake when they are
    moved.
    """
    network = None if model is None else copy.deepcopy(model.module)
    waits = Waits()
    with FakeTensorMode(allow_non_fake_inputs=True), waits:
        if network is not None:
            _move(network)
            model = replace(model, module=network)
        yield FakeGpu(model, waits)


def _move(network: nn.Module) -> None:
    """Put a network on the GPU, in place; tied weights stay tied."""
    known: dict[int, Any] = {}
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if id(tensor) not in known:
                        known[id(tensor)] = tensor, _there(tensor)  # held: an id is of one object
                    tensors[name] = known[id(tensor)][1]


def _there(tensor: torch.Tensor) -> torch.Tensor:
    there = tensor.detach().to(GPU)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(there, requires_grad=False)
    return there
