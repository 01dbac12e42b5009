"""Bytes of what personalizing a model takes beside its weights, from the shapes of its layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.losses import MAX_MEASURED
from fedsim.quant.rounding import compensated, on_gpu_search
from fedsim.quant.rounding.plan import PART_BYTES
from fedsim.quant.rounding.together import workspace

Shapes = Mapping[str, tuple[int, ...]]
"""Layer name -> shape of its second moments, as `fedsim.quant.moments.moment_shapes` returns it."""
_PLAIN, _PLAIN_ON_GPU = 12, 32
"""Bytes per weight of the largest layer, rounded without moments: quotients and codes; on a GPU in
float64."""


def moment_bytes(shapes: Shapes) -> int:
    """Return the bytes of one set of second moments, at most: layers may share some."""
    return sum(_float32(shape) for shape in shapes.values())


def packed_in_memory(layers: Iterable[Layer], how: WeightFormat, bits: int) -> int:
    """Return the bytes of packed layers in memory, where zero points take two bytes each."""
    return sum(
        how.code_bytes(layer.shape, bits)
        - how.zero_bytes(layer.shape, bits)
        + how.scale_bytes(layer.shape) * (2 if how.zero_points else 1)
        for layer in layers
    )


def table_bytes(
    layers: Sequence[Layer], how: WeightFormat, depths: Sequence[int], dense_bytes: int
) -> tuple[int, int]:
    """Return the bytes of weights rounded for a table of losses: packed, at all depths that are
    measured, and unpacked, of which `dense_bytes` are kept at most."""
    measured = [depth for depth in depths if depth <= MAX_MEASURED] or [min(depths)]
    packed = sum(packed_in_memory(layers, how, depth) for depth in measured)
    dense = 4 * len(measured) * sum(layer.n_weights for layer in layers)
    return packed, min(dense_bytes, dense)


def rounding_bytes(
    layers: Sequence[Layer], shapes: Shapes, *, reads_moments: bool, gpu: bool
) -> tuple[int, int]:
    """Return the bytes that a rounding takes beside its results: second moments that are read or
    blended for it, on the host, and its workspace, where the weights are."""
    plain = max(layer.n_weights for layer in layers) * (_PLAIN_ON_GPU if gpu else _PLAIN)
    if not reads_moments or not shapes:
        return 0, plain
    where = on_gpu_search if gpu else compensated
    found = [
        workspace(layer.shape, shapes[layer.name], where.ROWS)
        for layer in layers
        if layer.name in shapes
    ]
    # One more float64 matrix, which is factored, and float32 copies of two blends.
    largest = max(_float32(shape) for shape in shapes.values())
    work = max(max(found), min(where.BATCH_BYTES, sum(found))) + 2 * largest
    part = max(largest, min(PART_BYTES, moment_bytes(shapes)))
    return part + 2 * largest, max(plain, work)


def _float32(shape: Sequence[int]) -> int:
    return 4 * math.prod(shape)
