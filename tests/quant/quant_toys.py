"""What the tests of `fedsim.quant` share: networks small enough to work out by other means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import settings
from properties import examples
from torch import nn

from fedsim.quant.activations import FLOAT, InputFormat
from fedsim.quant.granularities import GRANULARITIES, WeightFormat
from fedsim.quant.layers import find_layers
from fedsim.quant.model import Batch
from fedsim.quant.modelfile import Manifest, ModelFile, fingerprint, store_leftovers
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.switch import Switch
from fedsim.registry import Registry

PER_CHANNEL, PER_TENSOR = WeightFormat("per_channel"), WeightFormat("per_tensor")
BOTH = (PER_TENSOR, PER_CHANNEL)
"""The formats of the paper and of its variant with a scale per channel."""
FORMATS = tuple(WeightFormat(name, zeros) for name in GRANULARITIES for zeros in (False, True))
"""Every format that there is."""
HALVES = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
"""Every positive finite float16, ascending."""

thorough = settings(max_examples=examples(150), deadline=None, derandomize=True, database=None)
"""Hypothesis: the same examples in every run."""


@contextmanager
def registered(registry: Registry, name: str, entry: Any) -> Iterator[None]:
    """Have an entry of the test's own in a registry while open."""
    registry.add(name, entry)
    try:
        yield
    finally:
        del registry._entries[name]


class Toy:
    """A `Quantizable`: a network, its layers, and how often it ran."""

    def __init__(self, module: nn.Module, keep: Sequence[str] = ()) -> None:
        self.module = module.eval()
        self.layers = find_layers(module, keep)
        self.forwards = 0

    def forward(self, batch: Batch) -> torch.Tensor:
        self.forwards += 1
        return self.module(**batch.inputs)

    def answers(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Logits of the frames that are speech."""
        frames = batch.frames_out.get("head")
        if frames is None:
            return logits.flatten(0, -2)
        return logits[torch.arange(logits.shape[1])[None] < frames[:, None]]

    def loss(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Cross-entropy against the likeliest class of each frame that is speech."""
        best = logits.detach().argmax(-1)
        frames = batch.frames_out.get("head")
        if frames is not None:
            best[torch.arange(logits.shape[1])[None] >= frames[:, None]] = -100
        return F.cross_entropy(logits.flatten(0, -2), best.flatten(), reduction="sum")


class Talker(nn.Module):
    """Convolutions over (B, 1, T), then linear maps over (B, T', C): a speech model in small.

    `conv2` has two groups. No convolution pads, so a clip's frames do not depend on what follows
    it.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv1d(1, 6, 5, stride=2)
        self.conv2 = nn.Conv1d(6, 8, 3, stride=2, groups=2, bias=False)
        self.norm = nn.LayerNorm(8)
        self.mid = nn.Linear(8, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(x)))).transpose(1, 2)
        return self.head(torch.tanh(self.mid(self.norm(hidden))))


def clips(lengths: Sequence[int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator) for n in lengths]


def talk(audio: Sequence[torch.Tensor], padding: float = 50.0) -> Batch:
    """Return a batch for `Talker`, padded with a value far outside the clips."""
    longest = max(len(c) for c in audio)
    x = torch.full((len(audio), 1, longest), padding)
    for row, c in zip(x, audio, strict=True):
        row[0, : len(c)] = c
    first = torch.tensor([len(c) for c in audio])
    second = (first - 5) // 2 + 1
    third = (second - 3) // 2 + 1
    into = {"conv1": first, "conv2": second, "mid": third, "head": third}
    out = {"conv1": second, "conv2": third, "mid": third, "head": third}
    return Batch({"x": x}, into, out)


class Echo(nn.Module):
    """One layer whose output is its input: what a test wants a layer to answer, it answers."""

    def __init__(self, channels: int, kind: str = "linear") -> None:
        super().__init__()
        if kind == "linear":
            self.layer: nn.Module = nn.Linear(channels, channels, bias=False)
            self.layer.weight.data = torch.eye(channels)
        else:
            self.layer = nn.Conv1d(channels, channels, 1, groups=channels, bias=False)
            self.layer.weight.data = torch.ones(channels, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Tied(nn.Module):
    """An embedding table that is the output head too, as in Whisper."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(12, 4)
        self.mid = nn.Linear(4, 4)
        self.head = nn.Linear(4, 12, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mid(self.table(x))))


class Named(nn.Module):
    """Calls its layer by keyword."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(input=x)


def n_hooks(module: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in module.modules()
    )


def outputs_of(module: nn.Module, run: Callable[[], object]) -> dict[str, list[torch.Tensor]]:
    """Run and return every output of every submodule, whole: what the library only samples."""
    kept: dict[str, list[torch.Tensor]] = {}

    def keep(name: str):
        return lambda m, args, out: kept.setdefault(name, []).append(out)

    handles = [m.register_forward_hook(keep(n)) for n, m in module.named_modules() if n]
    run()
    for handle in handles:
        handle.remove()
    return kept


def model_file(
    toy: Toy,
    bits: Sequence[int],
    weight_format: WeightFormat = PER_CHANNEL,
    inputs: Sequence[InputFormat] | None = None,
    settings: dict | None = None,
) -> ModelFile:
    """Return the contents of a model file of `toy` with a plan of `bits`."""
    switch = Switch(toy)
    weights = tuple(
        quantize_weight(w, b, weight_format)
        for w, b in zip(switch.full_weights().values(), bits, strict=True)
    )
    manifest = Manifest(
        "toy",
        fingerprint(toy.layers),
        weight_format.granularity,
        weight_format.zero_points,
        tuple(bits),
        settings or {},
    )
    return ModelFile(
        manifest,
        weights,
        tuple(inputs or [FLOAT] * len(bits)),
        store_leftovers(switch.full_leftovers()),
    )


def half_up(x: np.ndarray | float) -> np.ndarray:
    """Return the smallest float16 that is not below each positive x, 1 for 0: a stored scale."""
    x = np.asarray(x, np.float64)
    return np.where(x > 0, HALVES[np.searchsorted(HALVES, x)], 1.0)


def rounded(x: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    """The paper's activation quantizer, written out in float64: x' = S (q + Z)."""
    scale = (high - low) / (2**bits - 1)
    zero = np.round(low / scale)
    codes = np.clip(np.round(np.asarray(x, np.float64) / scale) - zero, 0, 2**bits - 1)
    return scale * (codes + zero)
