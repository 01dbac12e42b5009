"""A layer of which only some rows are stored: exact sizes of every plan, and files that load."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples

from fedsim.quant import modelfile
from fedsim.quant.activations import FLOAT
from fedsim.quant.granularities import GRANULARITIES, WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.modelfile import Manifest, ModelFile
from fedsim.quant.moments import LayerMoments
from fedsim.quant.rounding.plan import round_plan
from fedsim.quant.rows import Rows, look_up, spread_logits
from fedsim.quant.weights import dequantize_weight

LAYERS = (Layer("body", "linear", (6, 40)), Layer("head", "linear", (21, 40), ("table",)))
DEPTHS = tuple(range(2, 17))
REST = {"norm": torch.arange(5).half()}


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {layer.name: torch.randn(layer.shape, generator=generator) for layer in LAYERS}


@settings(max_examples=examples(60), deadline=None)
@given(
    st.sets(st.integers(0, 20), min_size=1),
    st.tuples(st.sampled_from(DEPTHS), st.sampled_from(DEPTHS)),
    st.sampled_from(sorted(GRANULARITIES.names())),
    st.booleans(),
    st.sampled_from(["nearest", "scaled", "compensated"]),
)
def test_every_plan(tmp_path_factory, kept, bits, granularity, zero_points, rounding):
    """The size is known before anything is packed, and does not depend on which rows are kept."""
    weight_format = WeightFormat(granularity, zero_points)
    mask = np.isin(np.arange(21), list(kept))
    rows = Rows("head", mask)
    blank = Manifest("toy", modelfile.fingerprint(LAYERS), granularity, zero_points, ())
    sizes = modelfile.model_sizes(LAYERS, REST, blank, DEPTHS, rows)
    other = modelfile.model_sizes(LAYERS, REST, blank, DEPTHS, Rows("head", mask[::-1]))
    assert other.total(bits) == sizes.total(bits)
    packed = round_plan(weights(), LAYERS, bits, rounding, weight_format, {}, rows)
    manifest = Manifest("toy", blank.fingerprint, granularity, zero_points, bits)
    path = tmp_path_factory.mktemp("rows") / "model.safetensors"
    file = ModelFile(manifest, packed, (FLOAT, FLOAT), REST, rows)
    assert modelfile.write(path, LAYERS, file) == os.path.getsize(path) == sizes.total(bits)
    again = modelfile.read(path, LAYERS)
    assert (again.rows.kept == mask).all()
    for found, expected in zip(again.weights, packed, strict=True):
        assert torch.equal(dequantize_weight(found), dequantize_weight(expected))
    assert dequantize_weight(again.weights[1]).shape == (len(kept), 40)
    assert again.leftovers.keys() == REST.keys()


@pytest.mark.parametrize("zero_points", [False, True])
def test_rows_are_rounded_without_their_neighbours(zero_points):
    """Those of two sets that a row is in are equal, whatever moments the layer has."""
    weight_format = WeightFormat("per_channel", zero_points)
    moments = {"head": LayerMoments(np.eye(40, dtype=np.float32)[None] * 3 + 1, 1000)}
    found = {}
    for kept in ([3, 5, 9], [0, 5, 20]):
        rows = Rows("head", np.isin(np.arange(21), kept))
        packed = round_plan(weights(), LAYERS, (3, 3), "compensated", weight_format, moments, rows)
        found[kept.index(5), kept[0]] = dequantize_weight(packed[1])[kept.index(5)]
    first, second = found.values()
    assert torch.equal(first, second)


def test_logits_and_look_ups():
    rows = Rows("head", np.array([True, False, True, False]))
    logits = spread_logits(rows, torch.device("cpu"))(None, (), torch.tensor([[1.0, 2.0]]))
    assert logits.tolist() == [[1.0, -np.inf, 2.0, -np.inf]]
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert look_up(table, rows)(torch.tensor([2, 1, 0])).tolist() == [[3, 4], [0, 0], [1, 2]]
