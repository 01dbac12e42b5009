"""Calibration: the range of each layer's input, from a user's few unlabelled clips.

    minmax   the observed range
    cosine   the share of it that maximises cos(quantized output, full-precision output)
    hessian  the share of it with the smallest squared output error, weighted by the Fisher
             information
    none     the observed range of a public signal; no user data at all
    dynamic  no range: each vector has its own while the model runs
    float    no range: inputs are not quantized

The quantized output is that of the delivered weights on the quantized input. The Fisher information
is the squared gradient of the loss against the model's own transcript: with the model's soft output
as the target, that gradient would be zero in full precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fedsim.quant.accelerated import on_processor, wide
from fedsim.quant.activations import FLOAT, InputFormat, Range, make_range, quantize_activation
from fedsim.quant.calibrators import CALIBRATORS, Calibrator
from fedsim.quant.layers import Layer
from fedsim.quant.observe import ROWS, LayerObservation
from fedsim.quant.products import as_product, outputs
from fedsim.quant.rows import Rows
from fedsim.quant.sample import fetched

CANDIDATES = 100
"""A search chooses among the shares 1/100 .. 100/100 of the observed range."""
TRIES = 21
"""How many of them a search tries, on average."""


@dataclass(frozen=True)
class LayerWeights:
    """A layer's weight before and after quantization (float32, the layer's shape) and its bias
    (N,)."""

    full: torch.Tensor
    quantized: torch.Tensor
    bias: torch.Tensor | None


Score = Callable[[Range], Any]
"""f(range) -> its score: a number, or a tensor without dimensions on a GPU."""


def minmax(layer: Layer, seen: LayerObservation, weights: LayerWeights, bits: int) -> Range:
    """The observed range of the layer's input."""
    return make_range(seen.low, seen.high)


def cosine(layer: Layer, seen: LayerObservation, weights: LayerWeights, bits: int) -> Range:
    """The share of the observed range whose output is closest in angle to full precision."""
    return search(seen, cosine_score(layer, seen, weights, bits))


def hessian(layer: Layer, seen: LayerObservation, weights: LayerWeights, bits: int) -> Range:
    """The share of the observed range with the smallest Fisher-weighted squared output error."""
    return search(seen, fisher_score(layer, seen, weights, bits))


def calibrate_layer(
    calibration: str,
    layer: Layer,
    owner: nn.Module,
    seen: LayerObservation | None,
    quantized: Callable[[], torch.Tensor],
    bits: int,
    rows: Rows | None = None,
) -> InputFormat:
    """Return how one layer's input is quantized; `FLOAT` for an embedding, which looks rows up.

    Args:
        calibration: name of a calibrator.
        layer: the layer.
        owner: its module, with the full-precision weight.
        seen: what was observed of its input; None if it has no input to quantize.
        quantized: gives the weight at the plan's bit depth, float32 of the layer's shape.
        bits: activation bits, 4 to 16.
        rows: which rows of one layer `quantized` has; outputs of the others are left out.
    """
    calibrator = CALIBRATORS[calibration]
    if calibrator.find is None:
        return without_range(calibrator, layer, bits)
    if seen is None:
        return FLOAT
    bias = None if owner.bias is None else owner.bias.detach().float()  # type: ignore[operator]
    full = owner.weight.detach().float()  # type: ignore[operator]
    if rows is not None and rows.layer == layer.name:
        index = rows.index.to(full.device)
        full, bias = full[index], None if bias is None else bias[index]
        layer = replace(layer, shape=tuple(full.shape))
        if seen.fisher is not None:
            seen = replace(seen, fisher=seen.fisher[..., index])
    weights = LayerWeights(full, quantized(), bias)
    return InputFormat(bits, calibrator.find(layer, seen, weights, bits))


def without_range(calibrator: Calibrator, layer: Layer, bits: int) -> InputFormat:
    """Return how an input without a static range is quantized: over the range of each vector where
    the calibrator says so and the layer is linear, else not at all."""
    dynamic = not calibrator.static and calibrator.bits and layer.kind == "linear"
    return InputFormat(bits) if dynamic else FLOAT


def shrink(seen: LayerObservation, share: int) -> Range:
    """Return `share` / 100 of the observed range."""
    return make_range(seen.low * share / CANDIDATES, seen.high * share / CANDIDATES)


def search(seen: LayerObservation, score: Score) -> Range:
    """Return the range with the highest score among the 100 shares, from coarse to fine.

    As the range shrinks, the score rises while only outliers are clipped and falls once speech is,
    with smaller ripples from rounding. A grid of ten and two refinements therefore find the top.
    Each refinement searches around the best two: at 4 bits, a ripple may favour the wrong one of
    two neighbours. On a GPU each step waits for it once.
    """
    scores: dict[int, float] = {}

    def try_shares(*shares: int) -> None:
        new = [n for n in dict.fromkeys(shares) if 1 <= n <= CANDIDATES and n not in scores]
        found = fetched([score(shrink(seen, share)) for share in new])
        scores.update(zip(new, found, strict=True))

    def best(n: int) -> list[int]:
        return sorted(scores, key=lambda s: (scores[s], s), reverse=True)[:n]

    try_shares(*range(100, 0, -10))
    for step in (3, 1):
        around = [range(share - 2 * step, share + 2 * step + 1, step) for share in best(2)]
        try_shares(*chain.from_iterable(around))
    return shrink(seen, best(1)[0])


def cosine_score(layer: Layer, seen: LayerObservation, weights: LayerWeights, bits: int) -> Score:
    """Return range -> cos(Y, Y'), Y = X W^T + b and Y' = X' W'^T + b over the observed rows.

    With K inputs and N outputs, a candidate costs R N K operations, or R K^2 through the Gram
    matrix W'^T W', which is far less for a vocabulary head. Whichever is cheaper is used.
    """
    assert seen.rows is not None
    rows = seen.rows
    n_rows, groups, k = rows.shape
    full = as_product(layer, groups, weights.full)
    quantized = as_product(layer, groups, weights.quantized)
    target = outputs(rows, full, weights.bias)
    norm = _norm(target)
    n = layer.shape[0]
    if groups == 1 and _gram_macs(n_rows, n, k) < TRIES * n_rows * n * k:
        return _gram_score(rows[:, 0], target, norm, quantized[0], weights.bias, bits)

    def score(rng: Range) -> float:
        answer = outputs(quantize_activation(rows, rng, bits), quantized, weights.bias)
        return _dot(target, answer) / _at_least(norm * _norm(answer), 1e-30)

    return score


def _gram_macs(rows: float, n: int, k: int) -> float:
    return n * k * k + rows * k * (n + TRIES * k)


def search_macs(layer: Layer, positions: float) -> float:
    """Return the MACs of a search, not counting the observing pass.

    `positions` is how many output frames the layer computed; `observe` keeps `ROWS` at most.
    """
    rows = min(float(ROWS), positions)
    return rows * layer.n_weights + TRIES * rows * layer.n_weights


def cosine_macs(layer: Layer, positions: float) -> float:
    """Return the MACs of the search by cosine; see `search_macs`, and `cosine_score`."""
    rows = min(float(ROWS), positions)
    n, k = layer.shape[0], layer.n_weights // layer.shape[0]
    return rows * layer.n_weights + min(TRIES * rows * layer.n_weights, _gram_macs(rows, n, k))


def _gram_score(
    rows: torch.Tensor,
    target: torch.Tensor,
    norm: Any,
    quantized: torch.Tensor,
    bias: torch.Tensor | None,
    bits: int,
) -> Score:
    """Return `cosine_score` through the Gram matrix; the bias becomes one more input, always 1."""
    weight = quantized if bias is None else torch.cat([quantized, bias[:, None]], dim=1)
    gram = weight.T @ weight
    projected = target @ weight

    def score(rng: Range) -> float:
        x = quantize_activation(rows, rng, bits)
        if bias is not None:
            x = F.pad(x, (0, 1), value=1.0)
        size = _dot(x @ gram, x)
        return _dot(x, projected) / _at_least(norm * _at_least(size, 0.0) ** 0.5, 1e-30)

    return score


def fisher_score(layer: Layer, seen: LayerObservation, weights: LayerWeights, bits: int) -> Score:
    """Return range -> -sum F (Y - Y')^2 over the observed rows, F the squared gradient with respect
    to each output."""
    assert seen.rows is not None
    assert seen.fisher is not None
    rows, importance = seen.rows, seen.fisher
    groups = rows.shape[1]
    target = outputs(rows, as_product(layer, groups, weights.full), weights.bias)
    quantized = as_product(layer, groups, weights.quantized)

    def score(rng: Range) -> float:
        answer = outputs(quantize_activation(rows, rng, bits), quantized, weights.bias)
        return -_dot(importance, (target - answer).square_())

    return score


def _dot(a: torch.Tensor, b: torch.Tensor) -> Any:
    """Return the sum of all products: a number, or a tensor without dimensions on a GPU."""
    # float32 within a row, float64 over rows: a cosine of 0.99999 needs the digits.
    total = (a * b).sum(dim=-1, dtype=torch.float32).sum(dtype=wide(a.device))
    return float(total) if on_processor(total) else total


def _norm(a: torch.Tensor) -> Any:
    return _dot(a, a) ** 0.5


def _at_least(value: Any, lowest: float) -> Any:
    return value.clamp(min=lowest) if isinstance(value, torch.Tensor) else max(value, lowest)
