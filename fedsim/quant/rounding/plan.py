"""Rounding of all layers of a model at the bit depths of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.moments import LayerMoments, usable
from fedsim.quant.rounding import ROUNDINGS
from fedsim.quant.rounding.task import RoundingTask
from fedsim.quant.weights import PackedWeight


def round_plan(
    weights: Mapping[str, torch.Tensor],
    layers: Sequence[Layer],
    bits: Sequence[int],
    rounding: str,
    weight_format: WeightFormat,
    moments: Mapping[str, LayerMoments],
) -> tuple[PackedWeight, ...]:
    """Return the packed weight of each layer at its bit depth.

    Args:
        weights: layer name -> full-precision weight.
        layers: of the model.
        bits: bit depth of each layer.
        rounding: name of a rounding.
        weight_format: what shares a scale.
        moments: layer name -> second moments, for a rounding that reads them; layers that saw too
            little to have any (`quant.moments.MIN_ROWS`) are rounded without.

    Raises:
        FedsimError: for a weight that is not finite.
    """
    tasks = [
        rounding_task(weights[layer.name], layer, depth, rounding, moments)
        for layer, depth in zip(layers, bits, strict=True)
    ]
    return tuple(ROUNDINGS[rounding].round(tasks, weight_format))


def rounding_task(
    weight: torch.Tensor,
    layer: Layer,
    bits: int,
    rounding: str,
    moments: Mapping[str, LayerMoments],
) -> RoundingTask:
    """Return one layer as a task of a rounding."""
    reads = ROUNDINGS[rounding].reads_moments
    return RoundingTask(weight, bits, usable(moments, layer) if reads else None)


def without_moments(
    layers: Sequence[Layer], rounding: str, moments: Mapping[str, LayerMoments]
) -> tuple[str, ...]:
    """Return the names of the layers that a rounding has to round without compensation, because
    they received too little, or look rows up and receive nothing."""
    if not ROUNDINGS[rounding].reads_moments:
        return ()
    return tuple(layer.name for layer in layers if usable(moments, layer) is None)
