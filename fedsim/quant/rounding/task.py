"""A weight that is to be rounded, and what is known of its inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedsim.quant.packing import check_bits


@dataclass(frozen=True, eq=False)
class RoundingTask:
    """One layer at one bit depth.

    `weight` is the full-precision weight, (N, ...). `moments` are float32 (G, K, K): for each of G
    groups of a grouped convolution (else G = 1) the mean of x x^T over the inputs x (K,) of the
    layer; None where they are not known, or stand for too few inputs.

    Raises `FedsimError` for a bit depth outside 2..16.
    """

    weight: torch.Tensor
    bits: int
    moments: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return tuple(self.weight.shape)

    def matrix(self) -> np.ndarray:
        """Return the weight as an array, float32 (N, K), contiguous."""
        return np.ascontiguousarray(
            self.weight.detach().cpu().float().numpy().reshape(self.weight.shape[0], -1)
        )


def rounds_there(weight: torch.Tensor) -> bool:
    """Return whether a weight is rounded on the GPU that it is on: one that has float64."""
    return weight.device.type not in ("cpu", "mps")
