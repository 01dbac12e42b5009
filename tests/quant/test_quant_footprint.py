"""Bytes by shapes, beside those of the arrays that exist."""

from __future__ import annotations

import tracemalloc

import pytest
from rounding_toys import inputs, moments_of, weights

from fedsim.quant.blending import blend
from fedsim.quant.footprint import moment_bytes, packed_in_memory, rounding_bytes, table_bytes
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.moments import LayerMoments
from fedsim.quant.rounding.plan import round_plan

LAYERS = (
    Layer("narrow", "linear", (700, 130)),
    Layer("wide", "linear", (96, 1030)),
    Layer("conv", "conv1d", (64, 40, 9)),
    Layer("grouped", "conv1d", (64, 40, 9)),
    Layer("table", "embedding", (900, 64)),
)
SHAPES = {
    "narrow": (1, 130, 130),
    "wide": (1, 1030, 1030),
    "conv": (1, 360, 360),
    "grouped": (2, 360, 360),
}


@pytest.mark.parametrize("how", [WeightFormat("group_32", True), WeightFormat("per_channel")])
def test_packed_layers(how):
    full = {layer.name: weights(*layer.shape) for layer in LAYERS}
    sizes = {}
    for bits in (2, 4, 5):
        packed = round_plan(full, LAYERS, [bits] * len(full), "nearest", how, {})
        arrays = [a for w in packed for a in (w.payload, w.scales, w.zeros) if a is not None]
        sizes[bits] = sum(array.nbytes for array in arrays)
        assert sizes[bits] == packed_in_memory(LAYERS, how, bits)
    dense = 4 * sum(layer.n_weights for layer in LAYERS)
    assert table_bytes(LAYERS, how, (2, 4, 6, 8), 1 << 40) == (sizes[2] + sizes[4], 2 * dense)
    assert table_bytes(LAYERS, how, (5, 6), 99) == (sizes[5], 99)


@pytest.mark.parametrize("how", [WeightFormat("group_128", True), WeightFormat("per_tensor")])
@pytest.mark.parametrize("rounding", ["compensated", "nearest", "scaled"])
def test_a_rounding_takes_no_more(how, rounding):
    """Beside its results; moments that are its input are there before."""
    full = {layer.name: weights(*layer.shape) for layer in LAYERS}
    sets = []
    for seed in range(2):
        made = {n: moments_of(*[inputs(2 * s[1], s[1], seed)] * s[0]) for n, s in SHAPES.items()}
        sets.append({name: LayerMoments(mean, 99) for name, mean in made.items()})
    assert moment_bytes(SHAPES) == sum(one.nbytes for one in sets[0].values())
    reads = rounding == "compensated"
    bound = sum(rounding_bytes(LAYERS, SHAPES, reads_moments=reads, gpu=False))
    results = packed_in_memory(LAYERS, how, 3)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        round_plan(full, LAYERS, [3] * len(LAYERS), rounding, how, blend(*sets, 0.5))
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert (bound + results) / 3 < peak <= bound + results
