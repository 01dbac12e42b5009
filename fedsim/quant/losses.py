"""What each layer's bit depth costs the network: the divergence of its output from full precision.

The table (layer, depth) -> KL(full precision || that layer alone at that depth), in nats per output
position (a frame, a token, a clip), on unlabelled clips. It is what `allocation: knapsack` adds up
(HAWQ-V3, Yao et al. 2021, with the divergence itself in place of its estimate).

A layer's entries need the network from that layer on only: the outputs of all modules that end
before it are kept from the full-precision pass, and handed back in place of computing them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsim.errors import FedsimError
from fedsim.quant.accelerated import wide
from fedsim.quant.activations import InputFormat, quantize_input
from fedsim.quant.layers import Layer
from fedsim.quant.model import Batch, Quantizable, device_of
from fedsim.quant.profile import LayerProfile
from fedsim.quant.resume import resumed, traced

MEASURE = "loss"
"""Name of what the table holds, as a layer profile's measure."""

MAX_MEASURED = 4
"""Bit depths above this are not measured: each further bit is taken to divide the loss by four, as
a step half as wide divides a squared error. (On bundled:ctc a fifth and a sixth bit divide it by
three to six, and plans from measured values lose at most 0.00001 nats less.)"""
TOP = 32
"""Likeliest outputs of each position whose changes are kept for cross terms."""
TOLERANCE = 1e-3
"""Nats that all inputs that stay at 8 bits may cost together, each alone."""

Rounded = Callable[[int, int], torch.Tensor]
"""f(index of a layer, bit depth) -> its weight at that depth, float32 of the weight's shape."""
Change = Callable[[int, int], AbstractContextManager[None]]
"""f(index of a layer, index of a column) -> a context in which the layer is changed."""


def weight_losses(
    model: Quantizable,
    batches: Iterable[Batch],
    depths: Sequence[int],
    rounded: Rounded,
    *,
    pairs: bool = False,
) -> LayerProfile:
    """Return the loss of each layer's weight at each bit depth: a table (L, D), in nats.

    One full-precision pass, and one pass per layer and measured depth from that layer on. With
    `pairs` the profile also has cross terms (L D, L D): half the products u_i . u_j of the changes
    of the output, u = sqrt(p) (dz - E_p dz) for logits z and probabilities p in full precision, of
    which KL is |u|^2 / 2 to second order. Each u is scaled so that |u|^2 / 2 is the loss measured.

    Args:
        model: in full precision.
        batches: of the clips; with tokens, for a model that needs them.
        depths: ascending.
        rounded: gives the weights; called for measured depths, once per batch.
        pairs: whether cross terms are wanted.

    Raises:
        FedsimError: if there is no clip, or the network's output is not finite.
    """
    measured = [depth for depth in depths if depth <= MAX_MEASURED] or [depths[0]]
    layers = model.layers

    def change(index: int, column: int) -> AbstractContextManager[None]:
        return _replaced(model.module, layers[index], rounded(index, measured[column]))

    table, changes = _table(model, batches, len(measured), change, pairs=pairs)
    values = _extended(table, measured, depths)
    if changes is None:
        return LayerProfile(values, MEASURE, tuple(depths))
    products = _cross_terms(changes, values, measured, depths)
    return LayerProfile(values, MEASURE, tuple(depths), products)


def input_losses(
    model: Quantizable, batches: Iterable[Batch], inputs: Sequence[InputFormat]
) -> np.ndarray:
    """Return the loss of quantizing each layer's input alone, float64 (L,), in nats.

    `inputs` say how, layer by layer. Raises as `weight_losses` does.
    """

    def change(index: int, column: int) -> AbstractContextManager[None]:
        return _quantized_input(model.module, model.layers[index], inputs[index])

    return _table(model, batches, 1, change)[0][:, 0]


def wide_inputs(losses: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
    """Return which inputs need 16 bits, bool (L,): those that lose most, until the others lose at
    most `tolerance` together."""
    order = np.argsort(losses, kind="stable")
    narrow = order[np.cumsum(losses[order]) <= tolerance]
    wide = np.ones(len(losses), bool)
    wide[narrow] = False
    return wide


@torch.inference_mode()
def _table(
    model: Quantizable,
    batches: Iterable[Batch],
    columns: int,
    change: Change,
    *,
    pairs: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the losses (L, columns) and, with `pairs`, the changes of the output they come from,
    float32 (L columns, positions x `TOP`), divided by the root of the number of positions."""
    positions, parts = 0, []
    device = device_of(model)
    sums = torch.zeros(len(model.layers), columns, dtype=wide(device), device=device)
    for batch in batches:
        trace = traced(model, batch)
        positions += len(trace.logits)
        rows = []
        for index, layer in enumerate(model.layers):
            with resumed(trace, layer):
                for column in range(columns):
                    with change(index, column):
                        logits = model.answers(batch, model.forward(batch))
                    sums[index, column] += _divergence(trace.logits, logits)
                    if pairs:
                        rows.append(_output_change(trace.logits, logits))
        if pairs:
            parts.append(torch.stack(rows))
    if not positions:
        raise FedsimError("the losses of layers were asked for with no clip; give at least one")
    table = sums.cpu().double().numpy() / positions
    if not np.isfinite(table).all():
        at = int(np.argwhere(~np.isfinite(table))[0][0])
        raise FedsimError(
            f"layer {model.layers[at].name!r}: the model's output is not finite once this layer is "
            f"quantized; check the clips' level and the checkpoint"
        )
    # A divergence below zero is the rounding of a sum.
    changes = None
    if pairs:
        changes = torch.cat(parts, dim=1).cpu().numpy() / np.float32(positions**0.5)
    return np.maximum(table, 0.0), changes


def _extended(table: np.ndarray, measured: Sequence[int], depths: Sequence[int]) -> np.ndarray:
    """Return the table (L, D) for all depths."""
    columns = [
        table[:, measured.index(depth)]
        if depth in measured
        else table[:, -1] * 0.25 ** (depth - measured[-1])
        for depth in depths
    ]
    return np.stack(columns, axis=1)


def _cross_terms(
    changes: np.ndarray, losses: np.ndarray, measured: Sequence[int], depths: Sequence[int]
) -> np.ndarray:
    """Return u_i . u_j / 2 of all pairs of layers and depths, float64 (L D, L D)."""
    kept = changes.reshape(-1, len(measured), changes.shape[1])
    columns = [
        kept[:, measured.index(depth)] if depth in measured else kept[:, -1] for depth in depths
    ]
    u = np.stack(columns, axis=1).reshape(losses.size, -1).astype(np.float64)
    length = np.linalg.norm(u, axis=1)
    u *= (np.sqrt(2 * losses.reshape(-1)) / np.where(length > 0, length, 1.0))[:, None]
    return u @ u.T / 2


def divergence(full: torch.Tensor, other: torch.Tensor) -> float:
    """Return the mean of KL(full || other), nats per position, of logits (P, V)."""
    return float(_divergence(full, other)) / len(full)


def _divergence(full: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the sum of KL(full || other) over positions, without dimensions."""
    p, q = full.float().log_softmax(-1), other.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(dim=-1).sum(dtype=wide(p.device))


def _output_change(full: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return u of the `TOP` likeliest outputs of each position, float32 (P x TOP,)."""
    full, other = full.float(), other.float()
    p = full.softmax(-1)
    change = other - full
    change = change - (p * change).sum(dim=-1, keepdim=True)
    top = p.topk(min(TOP, p.shape[-1]), dim=-1)
    return (top.values.sqrt() * change.gather(-1, top.indices)).reshape(-1)


@contextmanager
def _replaced(network: nn.Module, layer: Layer, weight: torch.Tensor) -> Iterator[None]:
    holder: Any = network.get_submodule(layer.name).weight  # aliases share it
    full = holder.data
    with torch.inference_mode(False):  # a parameter cannot hold an inference-mode tensor
        weight = weight.to(full)  # its device and type
        holder.data = weight.clone() if weight.is_inference() else weight
    try:
        yield
    finally:
        holder.data = full


@contextmanager
def _quantized_input(network: nn.Module, layer: Layer, how: InputFormat) -> Iterator[None]:
    def hook(module: nn.Module, args: tuple) -> tuple:
        return (quantize_input(args[0], how), *args[1:])

    handle = network.get_submodule(layer.name).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
