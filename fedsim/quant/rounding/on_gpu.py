"""The roundings on a GPU: the same rules and searches as on the processor, in torch.

`scales.py`, `independent.py` and `compensated.py` say what is computed and why. Compensation is in
float64 here too, so that codes are those of the processor wherever sums taken in another order do
not tip a tie; least squares are sums in float32, and may choose another share of a range. A layer's
codes leave the GPU once, to be packed. Finding scales waits for nothing: what is wrong with a
weight shows when its codes are fetched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from fedsim.quant.granularities import GRANULARITIES, WeightFormat
from fedsim.quant.rounding import independent
from fedsim.quant.rounding.scales import REFINEMENTS, half_up, shares
from fedsim.quant.rounding.task import RoundingTask
from fedsim.quant.weights import PackedWeight, column_groups, pack_weight

_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Scales:
    """Scales S and zero points Z of blocks, float64 (M,); S is infinite where float16 has none."""

    scale: torch.Tensor
    zero: torch.Tensor

    def codes(self, blocks: torch.Tensor, top: float) -> torch.Tensor:
        """Return the nearest codes of `blocks` (M, g) within 0..top, as floats."""
        q = (blocks / self.scale[:, None].to(blocks)).round_()  # half to even
        return q.add_(self.zero[:, None].to(blocks)).clamp_(0.0, top)


Rule = Callable[[torch.Tensor, int], Scales]
"""f(blocks (M, g), bits) -> scales of each block."""


def nearest(tasks: Sequence[RoundingTask], weight_format: WeightFormat) -> list[PackedWeight]:
    """Round as `independent.nearest` does; raises likewise."""
    return [_rounded(task, weight_format, _nearest_rule(weight_format)) for task in tasks]


def scaled(tasks: Sequence[RoundingTask], weight_format: WeightFormat) -> list[PackedWeight]:
    """Round as `independent.scaled` does; raises likewise."""
    rule = partial(least_squares, zero_points=weight_format.zero_points)
    return [_rounded(task, weight_format, rule) for task in tasks]


def round_weight(weight: torch.Tensor, bits: int, weight_format: WeightFormat) -> torch.Tensor:
    """Return W' = S (q - Z) by `nearest`, float32, on the GPU; NaN where the weight is."""
    task = RoundingTask(weight, bits)
    matrix = as_matrix(task)
    rounded = torch.empty_like(matrix)
    for columns, _, codes, found in _by_group(task, weight_format, _nearest_rule(weight_format)):
        codes -= found.zero[:, None].to(codes)
        codes *= found.scale[:, None].to(codes)
        rounded[:, columns] = codes.reshape(len(rounded), -1)
    return rounded.reshape(weight.shape)


def as_matrix(task: RoundingTask) -> torch.Tensor:
    """Return the weight as float32 (N, K), where it is."""
    return task.weight.detach().float().reshape(task.shape[0], -1).contiguous()


def _nearest_rule(weight_format: WeightFormat) -> Rule:
    return whole_range if weight_format.zero_points else largest_magnitude


def _rounded(task: RoundingTask, weight_format: WeightFormat, rule: Rule) -> PackedWeight:
    return pack_codes(task, weight_format, *find_codes(task, weight_format, rule))


def find_codes(
    task: RoundingTask, weight_format: WeightFormat, rule: Rule
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return codes (N, K) as floats, scales and zero points float64 (rows, columns of scales), on
    the GPU."""
    matrix = as_matrix(task)
    grid = weight_format.grid(task.shape)
    codes = torch.empty_like(matrix)
    scales = torch.empty(grid, dtype=torch.float64, device=matrix.device)
    zeros = torch.empty_like(scales)
    for columns, i, q, found in _by_group(task, weight_format, rule):
        codes[:, columns] = q.reshape(len(codes), -1)
        scales[:, i], zeros[:, i] = found.scale, found.zero
    return codes, scales, zeros


def pack_codes(
    task: RoundingTask,
    weight_format: WeightFormat,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
) -> PackedWeight:
    """Fetch the codes of a layer, and pack them."""
    found = scales.cpu().numpy()
    if not np.isfinite(found).all():
        independent.nearest([task], weight_format)  # says what is wrong with most weights
        half_up(np.abs(found).ravel())
    kind = torch.uint8 if task.bits <= 8 else torch.int32
    kept = zeros.cpu().numpy() if weight_format.zero_points else None
    whole = codes.nan_to_num().to(kind).cpu().numpy().astype(np.uint16)
    return pack_weight(task.shape, task.bits, weight_format, whole, found, kept)


def _by_group(
    task: RoundingTask, weight_format: WeightFormat, rule: Rule
) -> Iterator[tuple[slice, int, torch.Tensor, Scales]]:
    """Yield columns that share scales, the number of their group, and the codes and scales of their
    blocks."""
    matrix = as_matrix(task)
    per_channel = GRANULARITIES[weight_format.granularity].per_channel
    top = float((1 << task.bits) - 1)
    for i, columns in enumerate(column_groups(matrix.shape[1], weight_format)):
        part = matrix[:, columns]
        blocks = part if per_channel else part.reshape(1, -1)
        found = rule(blocks, task.bits)
        yield columns, i, found.codes(blocks, top), found


def next_half(values: torch.Tensor) -> torch.Tensor:
    """Return values of at least 0 rounded up to float16, as float64; 1 for 0, and infinity where
    there is none."""
    half = values.half()
    # Positive floats follow each other as their bits do.
    above = (half.view(torch.int16) + 1).view(torch.float16)
    up = torch.where(half.double() < values, above, half).double()
    up = torch.where(values > _LARGEST, torch.inf, up)
    return torch.where(values > 0, up, torch.where(values == 0, 1.0, values))  # NaN stays


def largest_magnitude(blocks: torch.Tensor, bits: int) -> Scales:
    """Return the scales of `scales.largest_magnitude`."""
    scale = next_half(blocks.abs().amax(dim=1).double() / ((1 << (bits - 1)) - 1))
    return Scales(scale, torch.full_like(scale, 1 << (bits - 1)))


def whole_range(blocks: torch.Tensor, bits: int) -> Scales:
    """Return the scales of `scales.whole_range`."""
    return _between(*_ends(blocks), bits, 1.0)


def least_squares(blocks: torch.Tensor, bits: int, *, zero_points: bool) -> Scales:
    """Return the scales of `scales.least_squares`."""
    if zero_points:
        start = partial(_between, *_ends(blocks))
    else:
        largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))[:, 0]
        start = partial(_up_to, largest)
    top = float((1 << bits) - 1)
    best = start(bits, 1.0)
    least = torch.full_like(best.scale, math.inf)
    for share in (*shares(bits), *(None,) * REFINEMENTS):
        found = _refit(blocks, best, top) if share is None else start(bits, share)
        error = _squared_error(blocks, found, top)
        better = error < least
        least = torch.where(better, error, least)
        best = Scales(
            torch.where(better, found.scale, best.scale), torch.where(better, found.zero, best.zero)
        )
    return best


def _ends(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = torch.aminmax(blocks, dim=1)
    return low.clamp(max=0.0).double(), high.clamp(min=0.0).double()


def _between(low: torch.Tensor, high: torch.Tensor, bits: int, share: float) -> Scales:
    low, high = low * share, high * share
    top = (1 << bits) - 1
    scale = next_half((high - low) / top)
    return Scales(scale, (-low / scale).round().clamp(0, top))


def _up_to(largest: torch.Tensor, bits: int, share: float) -> Scales:
    middle = 1 << (bits - 1)
    scale = next_half(largest.abs().double() * share / middle)
    return Scales(torch.where(largest > 0, -scale, scale), torch.full_like(scale, middle))


def _refit(blocks: torch.Tensor, scales: Scales, top: float) -> Scales:
    q = scales.codes(blocks, top) - scales.zero[:, None].to(blocks)
    size = (q * q).sum(dim=1)
    fitted = (q * blocks).sum(dim=1) / torch.where(size > 0, size, 1.0)
    half = fitted.half().double()
    usable = (half != 0) & torch.isfinite(half)
    return Scales(torch.where(usable, half, scales.scale), scales.zero)


def _squared_error(blocks: torch.Tensor, scales: Scales, top: float) -> torch.Tensor:
    back = scales.codes(blocks, top) - scales.zero[:, None].to(blocks)
    back = back.mul_(scales.scale[:, None].to(blocks)).sub_(blocks)
    return (back * back).sum(dim=1).double()
