"""What the method needs of a speech model: the interface between `quant` and `speech`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from fedsim.quant.layers import Layer


@dataclass(frozen=True)
class Batch:
    """A few clips in the form in which the model takes them.

    `inputs` are the keyword arguments of the module's forward. The three mappings hold, by layer
    name, how many frames of each clip count (int64 (B,)); for a layer that is missing there, all
    frames count. `frames_in` and `frames_out` are the frames of the layer's input and output that
    affect the result (masked padding does not); `speech` the frames of its output that are speech,
    where these are fewer (Whisper also computes the silence that fills its window). `targets` are
    token ids of the model's own transcript (B, U), padded with -100, for a model whose forward
    needs them. `language` is the language code of the clips, for models that need it. `alone` says
    that this is the only batch of the pass, so that one call of a layer is all there is. `rows` and
    `of` are for a batch that shares a forward pass (`quant/shared.py`): its rows of the tensors,
    among `of`.
    """

    inputs: dict[str, torch.Tensor]
    frames_in: Mapping[str, torch.Tensor] = field(default_factory=dict)
    frames_out: Mapping[str, torch.Tensor] = field(default_factory=dict)
    speech: Mapping[str, torch.Tensor] = field(default_factory=dict)
    targets: torch.Tensor | None = None
    language: str | None = None
    alone: bool = False
    rows: slice | None = None
    of: int = 0

    def part(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is this batch's of a tensor (clips, ...) that the network made; all of one
        that is the same for every clip, such as an encoding of positions (1, ...)."""
        return x if self.rows is None or x.shape[0] != self.of else x[self.rows]


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

    def answers(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits (P, V) at the positions that make up the output: frames of a CTC model,
        tokens of a seq2seq model's own transcript, clips of a classifier."""

    def loss(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Return the loss of `logits` against the model's own transcript, summed over clips
        (scalar)."""


def frame_axis(kind: str) -> int:
    """Return the axis of frames in a layer's input and output: (B, C, T) for conv1d, else (B, T,
    C)."""
    return 2 if kind == "conv1d" else 1


def device_of(model: Quantizable) -> torch.device:
    """Return the device on which a model computes."""
    return next(model.module.parameters()).device
