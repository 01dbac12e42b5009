"""Rounding of all layers of a model at the bit depths of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.moments import LayerMoments, usable
from fedsim.quant.rounding import ROUNDINGS
from fedsim.quant.rounding.task import RoundingTask, rounds_there
from fedsim.quant.rows import Rows, kept_rows
from fedsim.quant.weights import PackedWeight


def round_plan(
    weights: Mapping[str, torch.Tensor],
    layers: Sequence[Layer],
    bits: Sequence[int],
    rounding: str,
    weight_format: WeightFormat,
    moments: Mapping[str, LayerMoments],
    rows: Rows | None = None,
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
        rows: which rows of one layer are packed, by `row_rounding`; None for all.

    Raises:
        FedsimError: for a weight that is not finite.
    """
    names = [
        row_rounding(rounding, weight_format) if rows and layer.name == rows.layer else rounding
        for layer in layers
    ]
    packed: dict[int, PackedWeight] = {}
    for name in dict.fromkeys(names):
        chosen = [i for i, other in enumerate(names) if other == name]
        tasks = [
            rounding_task(
                kept_rows(weights[layers[i].name], layers[i], rows),
                layers[i],
                bits[i],
                name,
                moments,
            )
            for i in chosen
        ]
        entry = ROUNDINGS[name]
        there = entry.on_gpu is not None and all(rounds_there(task.weight) for task in tasks)
        find = entry.on_gpu if there else entry.round
        assert find is not None
        rounded = find(tasks, weight_format)
        packed |= dict(zip(chosen, rounded, strict=True))
    return tuple(packed[i] for i in range(len(layers)))


def row_rounding(rounding: str, weight_format: WeightFormat) -> str:
    """Return the rounding of a layer of which only some rows are kept: it reads no moments, so that
    a device can round rows of its own as the server would."""
    if not ROUNDINGS[rounding].reads_moments:
        return rounding
    return "nearest" if weight_format.zero_points else "scaled"


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
