"""Each weight is rounded by itself, to the nearest code: only the scales differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from fedsim.quant.granularities import GRANULARITIES, WeightFormat
from fedsim.quant.rounding.scales import (
    BlockScales,
    largest_magnitude,
    least_squares,
    require_finite,
    whole_range,
)
from fedsim.quant.rounding.task import RoundingTask
from fedsim.quant.weights import PackedWeight, column_groups, pack_weight

Rule = Callable[[np.ndarray, int], BlockScales]
"""f(blocks (M, g), bits) -> scales of each block."""


def nearest(tasks: Sequence[RoundingTask], weight_format: WeightFormat) -> list[PackedWeight]:
    """Round to the nearest code, the scale from the largest magnitude (the paper, section 3).

    S = max|W| / (2^(b-1) - 1), q = clamp(round(W / S), -(2^(b-1) - 1), 2^(b-1) - 1); with zero
    points S = (max W - min W) / (2^b - 1). Scales are rounded up to float16.

    Raises `FedsimError` for a weight that is NaN or infinite, or needs too large a scale.
    """
    rule = whole_range if weight_format.zero_points else largest_magnitude
    return [_rounded(task, weight_format, rule) for task in tasks]


def scaled(tasks: Sequence[RoundingTask], weight_format: WeightFormat) -> list[PackedWeight]:
    """Round to the nearest code, with scales of least squared error; codes in the full range.

    Raises as `nearest` does.
    """
    rule = partial(least_squares, zero_points=weight_format.zero_points)
    return [_rounded(task, weight_format, rule) for task in tasks]


def quantize_weight(weight: torch.Tensor, bits: int, weight_format: WeightFormat) -> PackedWeight:
    """Round one weight (N, ...) as `nearest` does."""
    return nearest([RoundingTask(weight, bits)], weight_format)[0]


def round_weight(weight: torch.Tensor, bits: int, weight_format: WeightFormat) -> torch.Tensor:
    """Return W' = S (q - Z) by `nearest`, float32: the same as packing and unpacking it."""
    rule = whole_range if weight_format.zero_points else largest_magnitude
    rounded = np.empty((weight.shape[0], weight[0].numel()), np.float32)
    for columns, _, codes, found in _by_group(RoundingTask(weight, bits), weight_format, rule):
        codes -= found.zero[:, None].astype(np.float32)
        codes *= found.scale[:, None].astype(np.float32)
        rounded[:, columns] = codes.reshape(len(rounded), -1)
    return torch.from_numpy(rounded).reshape(weight.shape).to(weight.device)


def _rounded(task: RoundingTask, weight_format: WeightFormat, rule: Rule) -> PackedWeight:
    grid = weight_format.grid(task.shape)
    codes = np.empty((task.shape[0], math.prod(task.shape[1:])), np.uint16)
    scales, zeros = np.empty(grid), np.empty(grid)
    for columns, i, q, found in _by_group(task, weight_format, rule):
        codes[:, columns] = q.reshape(len(codes), -1)
        scales[:, i], zeros[:, i] = found.scale, found.zero
    kept = zeros if weight_format.zero_points else None
    return pack_weight(task.shape, task.bits, weight_format, codes, scales, kept)


def _by_group(
    task: RoundingTask, weight_format: WeightFormat, rule: Rule
) -> Iterator[tuple[slice, int, np.ndarray, BlockScales]]:
    """Yield columns that share scales, the number of their group, and the codes (M, g), float32,
    and scales of their blocks."""
    matrix = task.matrix()
    require_finite(matrix)
    per_channel = GRANULARITIES[weight_format.granularity].per_channel
    top = (1 << task.bits) - 1
    for i, columns in enumerate(column_groups(matrix.shape[1], weight_format)):
        part = matrix[:, columns]
        blocks = part if per_channel else part.reshape(1, -1)
        found = rule(blocks, task.bits)
        yield columns, i, found.codes(blocks, 0.0, top), found
