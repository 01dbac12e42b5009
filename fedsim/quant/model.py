"""What the method asks of a speech model: the seam between `quant` and `speech`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from fedsim.quant.layers import Layer


@dataclass(frozen=True)
class Batch:
    """A few clips as the model takes them.

    `inputs` are the keyword arguments of the module's forward. The mappings hold, by layer name,
    how many frames of each clip count (int64 (B,)); a layer that is missing there counts them all:
    `frames_in` and `frames_out` the frames of its input and output that bear on the result (padding
    that a mask hides does not), `speech` the frames of its output that are speech, where that is
    less (Whisper answers to the silence that fills its window). `targets` are token ids of the
    model's own transcript (B, U), -100 where there is none, for a model whose forward needs them.
    `language` is the code of the language that the clips are in, for models that want to know.
    `alone` says that it is the only batch of its pass: when a layer has answered, that is all.
    """

    inputs: dict[str, torch.Tensor]
    frames_in: Mapping[str, torch.Tensor] = field(default_factory=dict)
    frames_out: Mapping[str, torch.Tensor] = field(default_factory=dict)
    speech: Mapping[str, torch.Tensor] = field(default_factory=dict)
    targets: torch.Tensor | None = None
    language: str | None = None
    alone: bool = False


class Quantizable(Protocol):
    """A model whose layers can be observed and exchanged (adapters: `fedsim.speech.models`)."""

    @property
    def module(self) -> nn.Module:
        """The network, in eval mode."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Its quantizable layers."""

    def forward(self, batch: Batch) -> torch.Tensor:
        """Run the network once; return its logits."""

    def loss(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Return the loss of `logits` against the model's own transcript, summed over clips
        (scalar)."""


def frame_axis(kind: str) -> int:
    """Return the axis of frames in a layer's input and output: (B, C, T) for conv1d, else (B, T,
    C)."""
    return 2 if kind == "conv1d" else 1
