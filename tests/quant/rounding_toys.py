"""What the tests of rounding, second moments and losses share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import settings
from properties import examples
from torch import nn

from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import find_layers
from fedsim.quant.model import Batch
from fedsim.quant.rounding.task import RoundingTask
from fedsim.quant.weights import PackedWeight, dequantize_weight

thorough = settings(max_examples=examples(60), deadline=None, derandomize=True, database=None)
"""Hypothesis: the same examples in every run."""
GRANULARITIES = ("per_tensor", "per_channel", "group_32", "group_64", "group_128")
GROUP = {"group_32": 32, "group_64": 64, "group_128": 128}


def weights(*shape: int, seed: int = 0, spread: float = 0.1) -> torch.Tensor:
    """Normal weights with some outliers, float32."""
    generator = torch.Generator().manual_seed(seed)
    w = spread * torch.randn(shape, generator=generator)
    return w * (1 + 3 * (torch.rand(shape, generator=generator) < 0.02))


def inputs(n: int, k: int, seed: int = 0) -> np.ndarray:
    """Inputs (n, k), float32, whose columns go together and differ in size."""
    rng = np.random.default_rng([seed, 7])
    mixing = rng.standard_normal((k, k)) / k**0.5 + 0.3 * rng.standard_normal((1, k))
    return (rng.standard_normal((n, k)) @ mixing * rng.uniform(0.2, 2, k)).astype(np.float32)


def moments_of(*xs: np.ndarray) -> np.ndarray:
    """The second moments (G, K, K), float32, of the inputs (n, K) of each group."""
    return np.stack([x.T @ x / len(x) for x in xs]).astype(np.float32)


def numbers(packed: PackedWeight) -> np.ndarray:
    """What a packed weight stands for, float64 (N, K)."""
    return dequantize_weight(packed).double().numpy().reshape(packed.shape[0], -1)


def output_error(task: RoundingTask, packed: PackedWeight) -> float:
    """The mean squared error of the layer's output, summed over its channels."""
    assert task.moments is not None
    change = (task.matrix() - numbers(packed)).reshape(
        len(task.moments), -1, task.matrix().shape[1]
    )
    return float(np.einsum("gnk,gkl,gnl->", change, task.moments.astype(np.float64), change))


def every_format() -> list[WeightFormat]:
    return [WeightFormat(g, z) for g in GRANULARITIES for z in (False, True)]


class Net:
    """A `Quantizable` whose every output position is an answer; counts its passes."""

    def __init__(self, module: nn.Module, keep: Sequence[str] = ()) -> None:
        self.module = module.eval()
        self.layers = find_layers(module, keep)
        self.forwards = 0

    def forward(self, batch: Batch) -> torch.Tensor:
        self.forwards += 1
        return self.module(**batch.inputs)

    def answers(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        return logits.reshape(-1, logits.shape[-1])

    def loss(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        best = logits.detach().argmax(-1)
        return F.cross_entropy(logits.flatten(0, -2), best.flatten(), reduction="sum")


def batch(x: torch.Tensor, **counts: torch.Tensor) -> Batch:
    """A batch of `x` for a network that takes it; frames of each clip by layer name."""
    return Batch({"x": x}, counts, counts)


def state_of(module: nn.Module) -> dict[str, object]:
    """All that a measurement could leave behind: tensors, their places, hooks, own `forward`s."""
    state: dict[str, object] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        state[name] = (tensor.data_ptr(), tensor.detach().clone().numpy().tobytes())
    for name, one in module.named_modules():
        hooks = (one._forward_hooks, one._forward_pre_hooks, one._backward_hooks)
        state[f"{name}/hooks"] = [len(found) for found in hooks]
        state[f"{name}/own"] = "forward" in vars(one)
    return state


def fails_at(n: int, inner: Callable) -> Callable:
    """`inner`, but its nth call (from 0) raises `RuntimeError`."""
    calls = iter(range(1 << 30))

    def call(*args, **kwargs):
        if next(calls) == n:
            raise RuntimeError("on purpose")
        return inner(*args, **kwargs)

    return call
