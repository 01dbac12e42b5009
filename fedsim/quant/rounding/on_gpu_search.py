"""Error-compensated rounding on a GPU: the triangular search of `compensated.py`, in torch.

Layers of one shape go together, column by column, so that few and large steps fill the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedsim.quant.granularities import WeightFormat
from fedsim.quant.rounding.compensated import BLOCK, DAMPING, not_semidefinite
from fedsim.quant.rounding.on_gpu import (
    Scales,
    as_matrix,
    least_squares,
    pack_codes,
    scaled,
    whole_range,
)
from fedsim.quant.rounding.task import RoundingTask
from fedsim.quant.rounding.together import batches
from fedsim.quant.weights import PackedWeight, column_groups

BATCH_BYTES = 1 << 30
"""Bytes of float64 weights and moments that are worked on together, at most."""
ROWS = 16_384
"""Rows of one weight that are worked on together, at most: rows do not depend on each other."""

Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Codes (..., N, K) as floats, scales and zero points float64 (..., N, columns of scales)."""


def compensated(tasks: Sequence[RoundingTask], weight_format: WeightFormat) -> list[PackedWeight]:
    """Round as `compensated.compensated` does; raises likewise."""
    found: dict[int, PackedWeight] = {}
    for members in batches(tasks, ROWS, BATCH_BYTES):
        for i, codes in zip(
            members, round_together([tasks[i] for i in members], weight_format), strict=True
        ):
            found[i] = pack_codes(tasks[i], weight_format, *codes)
    bare = [i for i in range(len(tasks)) if i not in found]
    found |= dict(zip(bare, scaled([tasks[i] for i in bare], weight_format), strict=True))
    return [found[i] for i in range(len(tasks))]


def round_together(
    tasks: Sequence[RoundingTask], weight_format: WeightFormat, *, rows: int = ROWS
) -> list[Found]:
    """Return the codes, scales and zero points of tasks of one shape, all with moments.

    `rows` bounds the memory, and changes nothing else. Raises `FedsimError` for moments that no
    inputs have.
    """
    matrices = torch.stack([as_matrix(task) for task in tasks])  # (B, N, K)
    count, n, k = matrices.shape
    groups = len(tasks[0].moments)  # type: ignore[arg-type]
    device = matrices.device
    moments = np.concatenate([task.moments for task in tasks])
    factors = triangular(torch.from_numpy(moments).to(device))
    bits = [task.bits for task in tasks for _ in range(groups)]
    grid = weight_format.grid((n, k))
    known = None
    if grid[1] == 1:  # one scale serves all columns
        whole = [
            least_squares(
                matrix if grid[0] > 1 else matrix.reshape(1, -1),
                task.bits,
                zero_points=weight_format.zero_points,
            )
            for matrix, task in zip(matrices, tasks, strict=True)
        ]
        known = Scales(
            *(
                torch.stack([values.expand(n) for values in ends]).reshape(count * groups, -1)
                for ends in ([s.scale for s in whole], [s.zero for s in whole])
            )
        )
    # (tasks x groups, rows, K): a group of a convolution is a layer of its own here.
    split = matrices.reshape(count * groups, n // groups, k)
    parts = []
    for start in range(0, n // groups, rows):
        at = slice(start, start + rows)
        part = None if known is None else Scales(known.scale[:, at], known.zero[:, at])
        parts.append(search(split[:, at], factors, bits, weight_format, part))
    codes, scales, zeros = (torch.cat(of, dim=1) for of in zip(*parts, strict=True))
    found = []
    for i in range(count):
        own = slice(i * groups, (i + 1) * groups)
        ends = [values[own].reshape(n, -1)[: grid[0]] for values in (scales, zeros)]
        found.append((codes[own].reshape(n, k), *ends))
    return found  # type: ignore[return-value]


def triangular(moments: torch.Tensor) -> torch.Tensor:
    """Return R, upper triangular float64 (G, K, K), with R R^T = H + damping; H float (G, K, K)."""
    h = moments.double()
    diagonal = h.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(dim=1, keepdim=True)
    diagonal += torch.where(mean > 0, DAMPING * mean, 1.0)  # a view: this writes into h
    lower, info = torch.linalg.cholesky_ex(h.flip(1, 2))
    if bool(info.any()):
        raise not_semidefinite()
    return lower.flip(1, 2)


def search(
    weights: torch.Tensor,
    factors: torch.Tensor,
    bits: Sequence[int],
    weight_format: WeightFormat,
    known: Scales | None,
) -> Found:
    """Round B weights (B, N, K) column by column; arguments as of `compensated.search`, `known`
    with scales (B, N)."""
    b, n, k = weights.shape
    w = weights.double().permute(2, 0, 1).contiguous()
    diagonal = factors.diagonal(dim1=1, dim2=2).T[..., None]  # (K, B, 1)
    errors, codes = torch.empty_like(w), torch.empty_like(w)
    top = torch.tensor([(1 << d) - 1.0 for d in bits], dtype=w.dtype, device=w.device)[:, None]
    scales, zeros = [], []
    for columns in column_groups(k, weight_format):
        for start in range(columns.start, columns.stop, BLOCK):
            block = slice(start, min(columns.stop, start + BLOCK))
            first = start == columns.start
            span = columns if first and known is None else block
            carried = w.new_zeros(b, span.stop - span.start, n)
            if start:  # sum_{i < start} e_i R_ij
                earlier = factors[:, :start, span].transpose(1, 2)
                carried = earlier @ errors[:start].transpose(0, 1)
            if first:
                found = known or _group_scales(w[span], carried, factors, span, bits, weight_format)
                scales.append(found.scale)
                zeros.append(found.zero)
            for j in range(block.start, block.stop):
                target = carried[:, j - start]
                if j > start:
                    row = factors[:, start:j, j][:, None]  # (B, 1, columns of the block so far)
                    target = target + (row @ errors[start:j].transpose(0, 1))[:, 0]
                target = (target / diagonal[j] + w[j]) / found.scale
                codes[j] = torch.minimum((target.round() + found.zero).clamp(min=0.0), top)
                errors[j] = w[j] - (codes[j] - found.zero) * found.scale
    return codes.permute(1, 2, 0), torch.stack(scales, dim=-1), torch.stack(zeros, dim=-1)


def _group_scales(
    weights: torch.Tensor,
    carried: torch.Tensor,
    factors: torch.Tensor,
    columns: slice,
    bits: Sequence[int],
    weight_format: WeightFormat,
) -> Scales:
    """Return the scales (B, N) of a group from weights that make good the errors of earlier
    columns: w + c R_gg^-1 of columns (g, B, N) and carried errors (B, g, N)."""
    own = factors[:, columns, columns]
    change = torch.linalg.solve_triangular(own.transpose(1, 2), carried, upper=False)
    blocks = (weights.transpose(0, 1) + change).transpose(1, 2)  # (B, N, g)
    found = [
        whole_range(of, depth)
        if weight_format.zero_points
        else least_squares(of, depth, zero_points=False)
        for of, depth in zip(blocks, bits, strict=True)
    ]
    return Scales(torch.stack([s.scale for s in found]), torch.stack([s.zero for s in found]))
