"""Error-compensated rounding: GPTQ (Frantar et al. 2023) in the form of a triangular search.

With H the second moments of a layer's inputs, rounding a row w of its weight to w' adds
(w - w') H (w - w')^T to the squared error of the output. Let H = R R^T, R upper triangular: that is
|(w - w') R|^2, whose entry j holds the errors e_i = w_i - w'_i of columns i <= j only. So columns
are rounded from left to right, each to the code nearest to

    t_j = w_j + (sum_{i<j} e_i R_ij) / R_jj,

which would make entry j zero. The codes are those of GPTQ, which updates the columns not yet
rounded by the Cholesky factor of the inverse of H instead: here nothing is inverted.

Layers of one shape go together, column by column; the errors of earlier blocks of columns are
brought in by matrix products, one for each layer. Everything is float64, so that the order of the
sums does not show in the codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedsim.errors import FedsimError
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.rounding.independent import scaled
from fedsim.quant.rounding.scales import BlockScales, least_squares, require_finite, whole_range
from fedsim.quant.rounding.task import RoundingTask
from fedsim.quant.rounding.together import batches
from fedsim.quant.weights import PackedWeight, column_groups, pack_weight

DAMPING = 0.05
"""Added to the diagonal of H, times its mean, so that H is never singular. GPTQ takes 0.01; at 2
bits 0.05 loses less on clips that the moments have not seen (docs/results/smaller.md)."""
WIDE = 256
"""Columns into which the errors of all earlier ones are brought by one product. A multiple of every
group's width."""
BLOCK = 32
"""Columns among these whose errors are brought in one by one; those after them by a product."""
BATCH_BYTES = 64 << 20
"""Bytes of float64 weights and moments that are worked on together, at most (one layer, or the
`ROWS` of it, may take more)."""
ROWS = 4096
"""Rows of one weight that are worked on together, at most: rows do not depend on each other."""


def compensated(
    tasks: Sequence[RoundingTask],
    weight_format: WeightFormat,
    *,
    rows: int = ROWS,
    batch_bytes: int = BATCH_BYTES,
) -> list[PackedWeight]:
    """Round with compensation; a task without moments is rounded as by `scaled`.

    Where one scale serves all columns (per tensor, per channel, a group as wide as the matrix) it
    is that of least squared error of the weights. Those of several groups are set when the group's
    first column is reached, from weights that make good the errors so far.
    `rows` and `batch_bytes` bound the memory, and change nothing else.

    Raises `FedsimError` for a weight that is NaN or infinite, or needs too large a scale.
    """
    found: dict[int, PackedWeight] = {}
    for members in batches(tasks, rows, batch_bytes):
        packed = _compensated([tasks[i] for i in members], weight_format, rows)
        found |= dict(zip(members, packed, strict=True))
    bare = [i for i in range(len(tasks)) if i not in found]
    found |= dict(zip(bare, scaled([tasks[i] for i in bare], weight_format), strict=True))
    return [found[i] for i in range(len(tasks))]


def _compensated(
    tasks: Sequence[RoundingTask], weight_format: WeightFormat, step: int
) -> list[PackedWeight]:
    """Round tasks of one shape, all with moments, `step` rows at a time."""
    matrices = [task.matrix() for task in tasks]
    for matrix in matrices:
        require_finite(matrix)
    n, k = matrices[0].shape
    groups = len(tasks[0].moments)  # type: ignore[arg-type]
    factors = triangular([h for task in tasks for h in task.moments])  # type: ignore[union-attr]
    bits = [task.bits for task in tasks for _ in range(groups)]
    grid = weight_format.grid((n, k))
    fixed = (
        [
            _scales(matrix, task.bits, weight_format)
            for matrix, task in zip(matrices, tasks, strict=True)
        ]
        if grid[1] == 1
        else None
    )
    codes = np.empty((len(tasks), n, k), np.uint16)
    scales, zeros = np.empty((len(tasks), *grid)), np.empty((len(tasks), *grid))
    per_group = n // groups
    for start in range(0, per_group, step):
        rows = slice(start, min(per_group, start + step))
        # (tasks x groups, rows, K): a group of a convolution is a layer of its own here.
        part = np.concatenate([m.reshape(groups, per_group, k)[:, rows] for m in matrices])
        known = None
        if fixed is not None:
            known = [
                BlockScales(*(_of_rows(v, groups, g, rows, n) for v in (s.scale, s.zero)))
                for s in fixed
                for g in range(groups)
            ]
        found = search(part, factors, bits, weight_format, known)
        for i in range(len(tasks)):
            for g in range(groups):
                at = slice(g * per_group + rows.start, g * per_group + rows.stop)
                q, s, z = (x[i * groups + g] for x in found)
                codes[i, at] = q
                if fixed is None:
                    scales[i, at], zeros[i, at] = s, z
    if fixed is not None:
        for i, s in enumerate(fixed):
            scales[i, :, 0], zeros[i, :, 0] = s.scale, s.zero
    return [
        pack_weight(
            task.shape,
            task.bits,
            weight_format,
            codes[i],
            scales[i],
            zeros[i] if weight_format.zero_points else None,
        )
        for i, task in enumerate(tasks)
    ]


def _of_rows(values: np.ndarray, groups: int, group: int, rows: slice, n: int) -> np.ndarray:
    """Return the values (per_group rows,) of some rows of a group; one for all is repeated."""
    return np.broadcast_to(values, (n,)).reshape(groups, -1)[group, rows]


def _scales(matrix: np.ndarray, bits: int, weight_format: WeightFormat) -> BlockScales:
    """Return the scales of whole rows, or of the whole matrix."""
    blocks = matrix if weight_format.grid(matrix.shape)[0] > 1 else matrix.reshape(1, -1)
    return least_squares(blocks, bits, zero_points=weight_format.zero_points)


def triangular(moments: Sequence[np.ndarray]) -> np.ndarray:
    """Return R of each H, float (K, K): upper triangular, float64 (len, K, K), R R^T = H + damping.

    Raises `FedsimError` for an H that is not positive semidefinite: no inputs have such moments.
    """
    factors = np.zeros((len(moments), *moments[0].shape))
    for one, r in zip(moments, factors, strict=True):
        h = one.astype(np.float64)
        diagonal = np.einsum("kk->k", h)
        mean = float(diagonal.mean())
        diagonal += DAMPING * mean if mean > 0 else 1.0  # a view: this writes into h
        try:
            _factor(torch.from_numpy(h), torch.from_numpy(r))
        except torch.linalg.LinAlgError as error:
            raise not_semidefinite() from error
    return factors


def _factor(h: torch.Tensor, r: torch.Tensor) -> None:
    """Write R, with R R^T = h, into zeros: Cholesky's factor, from the last column on.

    By blocks of columns, which takes half as long as turning `h` around for LAPACK.
    """
    for stop in range(len(h), 0, -WIDE):
        start = max(0, stop - WIDE)
        later = r[:stop, stop:]
        columns = torch.addmm(h[:stop, start:stop], later, later[start:].T, alpha=-1)
        own = torch.linalg.cholesky(columns[start:].flip(0, 1)).flip(0, 1)
        r[start:stop, start:stop] = own
        r[:start, start:stop] = torch.linalg.solve_triangular(
            own.T, columns[:start], upper=False, left=False
        )


def not_semidefinite() -> FedsimError:
    """Return what to raise for second moments that no inputs have."""
    return FedsimError(
        "second moments are not positive semidefinite, so no clips have them: if they were kept in"
        " the cache folder, remove its folder public; else check the clips"
    )


def search(
    weights: np.ndarray,
    factors: np.ndarray,
    bits: Sequence[int],
    weight_format: WeightFormat,
    known: Sequence[BlockScales] | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round B weights column by column.

    Args:
        weights: (B, N, K).
        factors: R of each, float64 (B, K, K).
        bits: bit depth of each.
        weight_format: what shares a scale.
        known: scales of the rows of each, where one serves all K columns; None for groups.

    Returns:
        Codes uint16 (B, N, K), scales and zero points float64 (B, N, columns of scales).
    """
    b, n, k = weights.shape
    # Columns first: a column of all weights is one contiguous piece of memory.
    w = np.ascontiguousarray(weights.transpose(2, 0, 1), dtype=np.float64)
    diagonal = np.einsum("bkk->kb", factors)
    errors = np.empty_like(w)
    codes = np.empty(w.shape, np.uint16)
    top = np.array([(1 << d) - 1.0 for d in bits])[:, None]
    starts = {columns.start: g for g, columns in enumerate(column_groups(k, weight_format))}
    ends = [*starts, k][1:]
    scales = np.empty((b, n, len(starts)))
    zeros = np.empty_like(scales)
    for start in range(0, k, BLOCK):
        if start % WIDE == 0:
            wide = slice(start, min(k, start + WIDE))
            carried = np.zeros((wide.stop - start, b, n))  # sum_{i < start} e_i R_ij for each j
            _carry(carried, errors[:start], factors[:, :start, wide])
        block = slice(start, min(wide.stop, start + BLOCK))
        if start in starts:
            g = starts[start]
            columns = slice(start, ends[g])
            if known is None:
                brought = carried[start - wide.start : columns.stop - wide.start]
                found = _group_scales(w[columns], brought, factors, columns, bits, weight_format)
            else:
                found = list(known)
            scale = np.stack([s.scale for s in found])
            zero = np.stack([s.zero for s in found])
            scales[:, :, g], zeros[:, :, g] = scale, zero
        own = np.ascontiguousarray(factors[:, block, block].transpose(0, 2, 1))
        for j in range(block.start, block.stop):
            # One product for each layer: (1, columns of the block so far) by (those, N).
            within = own[:, None, j - start, : j - start] @ errors[start:j].transpose(1, 0, 2)
            target = within[:, 0] + carried[j - wide.start]
            target /= diagonal[j][:, None]
            target += w[j]
            np.divide(target, scale, out=target)
            np.rint(target, out=target)
            target += zero
            np.maximum(target, 0.0, out=target)
            np.minimum(target, top, out=target)
            codes[j] = target
            target -= zero
            target *= scale
            np.subtract(w[j], target, out=errors[j])
        rest = slice(block.stop, wide.stop)
        _carry(carried[block.stop - wide.start :], errors[block], factors[:, block, rest])
    return codes.transpose(1, 2, 0), scales, zeros


def _carry(carried: np.ndarray, errors: np.ndarray, factors: np.ndarray) -> None:
    """Add sum_i e_i R_ij to `carried`, float64 (columns j, B, N), with e (columns i, B, N) and R
    (B, columns i, columns j)."""
    if carried.size and errors.size:
        for i, r in enumerate(factors):  # one product each, so that no layer depends on another
            part = torch.from_numpy(carried[:, i])
            part.addmm_(torch.from_numpy(r).T, torch.from_numpy(errors[:, i]))


def _group_scales(
    weights: np.ndarray,
    carried: np.ndarray,
    factors: np.ndarray,
    columns: slice,
    bits: Sequence[int],
    weight_format: WeightFormat,
) -> list[BlockScales]:
    """Return the scales of a group from weights that make good the errors of earlier columns.

    These are w + c R_gg^-1: with errors -c R_gg^-1 in the group, its entries of e R are zero.
    """
    found = []
    for i, depth in enumerate(bits):
        own = torch.from_numpy(factors[i, columns, columns])
        change = torch.linalg.solve_triangular(
            own.T, torch.from_numpy(np.ascontiguousarray(carried[:, i])), upper=False
        )
        blocks = (weights[:, i] + change.numpy()).T
        if weight_format.zero_points:
            found.append(whole_range(blocks, depth))
        else:
            found.append(least_squares(blocks, depth, zero_points=False))
    return found
