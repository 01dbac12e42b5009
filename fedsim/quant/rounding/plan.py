"""Rounding of all layers of a model at the bit depths of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
import torch

from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.moments import SecondMoments, usable
from fedsim.quant.rounding import ROUNDINGS, Rounding
from fedsim.quant.rounding.task import RoundingTask, rounds_there
from fedsim.quant.rows import Rows, kept_rows
from fedsim.quant.weights import PackedWeight

PART_BYTES = 256 << 20
"""Bytes of second moments that are read or computed for a rounding at a time, at most (one layer
may have more)."""


def round_plan(
    weights: Mapping[str, torch.Tensor],
    layers: Sequence[Layer],
    bits: Sequence[int],
    rounding: str,
    weight_format: WeightFormat,
    moments: Mapping[str, SecondMoments],
    rows: Rows | None = None,
    *,
    part_bytes: int = PART_BYTES,
) -> tuple[PackedWeight, ...]:
    """Return the packed weight of each layer at its bit depth.

    `part_bytes` bounds the memory, and changes nothing else.

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
        entry = ROUNDINGS[name]
        known = {
            i: usable(moments, layers[i]) if entry.reads_moments else None
            for i, other in enumerate(names)
            if other == name
        }
        for part in _parts(layers, known, part_bytes):
            kept = [kept_rows(weights[layers[i].name], layers[i], rows) for i in part]
            depths, moments_of = [bits[i] for i in part], [known[i] for i in part]
            found = _round_together(entry, kept, depths, moments_of, weight_format)
            packed |= dict(zip(part, found, strict=True))
    return tuple(packed[i] for i in range(len(layers)))


def row_rounding(rounding: str, weight_format: WeightFormat) -> str:
    """Return the rounding of a layer of which only some rows are kept: it reads no moments, so that
    a device can round rows of its own as the server would."""
    if not ROUNDINGS[rounding].reads_moments:
        return rounding
    return "nearest" if weight_format.zero_points else "scaled"


def without_moments(
    layers: Sequence[Layer], rounding: str, moments: Mapping[str, SecondMoments]
) -> tuple[str, ...]:
    """Return the names of the layers that a rounding has to round without compensation, because
    they received too little, or look rows up and receive nothing."""
    if not ROUNDINGS[rounding].reads_moments:
        return ()
    return tuple(layer.name for layer in layers if usable(moments, layer) is None)


def _parts(
    layers: Sequence[Layer], known: Mapping[int, SecondMoments | None], part_bytes: int
) -> Iterator[list[int]]:
    """Yield the layers of `known` in parts, none with more bytes of moments than allowed, unless it
    is one layer. Those of one shape, which are rounded together, follow each other."""
    by_shape: dict[tuple, list[int]] = {}
    for i, found in known.items():
        n_bytes = None if found is None else found.nbytes
        by_shape.setdefault((layers[i].shape, n_bytes), []).append(i)
    part: list[int] = []
    held: dict[int, int] = {}
    for i in chain.from_iterable(by_shape.values()):
        found = known[i]
        own = {} if found is None else {id(found): found.nbytes}
        if part and sum((held | own).values()) > part_bytes:
            yield part
            part, held = [], {}
        part.append(i)
        held |= own
    if part:
        yield part


def _round_together(
    entry: Rounding,
    weights: Sequence[torch.Tensor],
    bits: Sequence[int],
    known: Sequence[SecondMoments | None],
    weight_format: WeightFormat,
) -> list[PackedWeight]:
    """Round some layers; those that share moments share one array of them, which ends here."""
    means: dict[int, np.ndarray] = {}
    for found in known:
        if found is not None and id(found) not in means:
            means[id(found)] = found.mean
    tasks = [
        RoundingTask(weight, depth, None if found is None else means[id(found)])
        for weight, depth, found in zip(weights, bits, known, strict=True)
    ]
    there = entry.on_gpu is not None and all(rounds_there(task.weight) for task in tasks)
    find = entry.on_gpu if there else entry.round
    assert find is not None
    return list(find(tasks, weight_format))
