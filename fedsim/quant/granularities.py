"""How many weights share a scale. Imports no torch, so that scenarios are checked without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.registry import Registry

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Granularity:
    """How many weights share a scale."""

    largest: Callable[[torch.Tensor], torch.Tensor]
    """f(W (N, ...)) -> max|W| of the weights that share a scale, (S,): S is 1 or N."""
    n_scales: Callable[[int], int]
    """f(N) -> S: how many scales a layer with N output channels stores."""
    summary: str


def max_of_tensor(weight: torch.Tensor) -> torch.Tensor:
    """Return max|W| of the whole weight, (1,)."""
    return weight.abs().amax().reshape(1)


def max_of_channels(weight: torch.Tensor) -> torch.Tensor:
    """Return max|W| of each output channel, (N,)."""
    return weight.abs().reshape(weight.shape[0], -1).amax(dim=1)


GRANULARITIES: Registry[Granularity] = Registry("granularity")
GRANULARITIES.add(
    "per_tensor",
    Granularity(max_of_tensor, lambda channels: 1, "One scale per weight, as in the paper."),
)
GRANULARITIES.add(
    "per_channel",
    Granularity(
        max_of_channels,
        lambda channels: channels,
        "One scale per output channel: 4 bytes more for each, far better below 6 bits.",
    ),
)


def n_scales(channels: int, granularity: str) -> int:
    """Return how many scales a layer with `channels` output channels stores."""
    return GRANULARITIES[granularity].n_scales(channels)
