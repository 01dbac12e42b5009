"""Packed weights in OpenVINO, unpacked and executed by it."""

from __future__ import annotations

import collections
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.export.openvino_weights import (
    DEPTHS,
    STORED,
    WeightNodes,
    packed_codes,
    parts,
    parts_bytes,
)
from fedsim.quant.granularities import GRANULARITIES, WeightFormat
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.weights import PackedWeight, dequantize_weight

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")
ops = pytest.importorskip("openvino.opset13")

FORMATS = [WeightFormat(name, zeros) for name in GRANULARITIES for zeros in (False, True)]
FLOAT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "INFERENCE_NUM_THREADS": 1,
}


def weight_of(shape, bits: int, weight_format: WeightFormat, seed: int = 0) -> PackedWeight:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return quantize_weight(torch.from_numpy(values), bits, weight_format)


def compiled(outputs, inputs=()):
    model = openvino.Model([node.output(0) for node in outputs], list(inputs), "one")
    return openvino.Core().compile_model(model, "CPU", FLOAT)


def product_of(packed: PackedWeight):
    """A model of x (T, K) times the transpose of a weight."""
    x = ops.parameter([-1, packed.shape[1]], np.float32, name="x")
    return compiled([ops.matmul(x, WeightNodes(packed, {}).whole(), False, True)], [x])


@settings(max_examples=20)
@given(st.sampled_from(DEPTHS), st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_openvino_reads_the_codes(bits, bytes_):
    """Of any number of codes: the runtime itself takes them apart."""
    codes = [byte >> (8 - bits) for byte in bytes_]
    tensor = openvino.Tensor(
        packed_codes(np.array(codes, np.uint8), bits),
        openvino.Shape([len(codes)]),
        getattr(openvino.Type, f"u{bits}"),
    )
    node = openvino.op.Constant(tensor, shared_memory=False)
    assert compiled([ops.convert(node, "f32")])({})[0].tolist() == codes


@pytest.mark.parametrize("bits", STORED)
def test_weights_are_the_same_number_for_number(bits):
    """Of a matrix and of a kernel, with groups that do not divide a row."""
    weights = [
        weight_of(shape, bits, how) for how in FORMATS for shape in ((5, 150), (4, 25, 6), (6, 64))
    ]
    found = compiled([WeightNodes(one, {}).whole() for one in weights])({})
    for i, packed in enumerate(weights):
        assert np.array_equal(found[i], dequantize_weight(packed).numpy()), packed.format


@settings(max_examples=20)
@given(
    st.integers(1, 9),
    st.integers(1, 140),
    st.sampled_from(sorted(STORED)),
    st.sampled_from(FORMATS),
    st.integers(0, 99),
)
def test_products_of_any_shape(n, k, bits, weight_format, seed):
    packed = weight_of((n, k), bits, weight_format, seed)
    x = np.random.default_rng(seed).normal(size=(3, k)).astype(np.float32)
    found = product_of(packed)({"x": x})[0]
    assert np.allclose(found, x @ dequantize_weight(packed).numpy().T, atol=1e-4, rtol=1e-4)
    stored = parts(packed)
    held = [one.data.nbytes for one in (stored.codes, stored.scales, stored.zeros) if one]
    assert sum(held) == parts_bytes((n, k), bits, weight_format)


def kept_in_memory(model):
    """Type -> how many numbers of it OpenVINO keeps as constants."""
    kept: collections.Counter[str] = collections.Counter()
    for node in model.get_runtime_model().get_ordered_ops():
        shape = node.get_output_partial_shape(0)
        if node.get_rt_info()["layerType"].value == "Const" and shape.is_static:
            kind = node.get_output_element_type(0).get_type_name()
            kept[kind] += math.prod(size.get_length() for size in shape)
    return kept


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
@pytest.mark.parametrize("bits", STORED)
def test_weights_stay_packed_in_memory(bits, weight_format):
    """OpenVINO computes with integers of 2, 4 or 8 bits; none is kept as a float."""
    kept = kept_in_memory(product_of(weight_of((64, 192), bits, weight_format)))
    assert kept[{2: "u2", 3: "u4", 4: "u4", 6: "u8", 8: "u8"}[STORED[bits]]] >= 64 * 192
    assert kept["f32"] <= 64 * 192 // 16  # scales and zero points of blocks of 32 or more


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
@pytest.mark.parametrize("bits", STORED)
def test_a_table_is_looked_up_and_multiplied_with(bits, weight_format):
    """As the tokens of a decoder are; groups of 64 or 128 do not divide a row of 160."""
    packed = weight_of((300, 160), bits, weight_format)
    ids = ops.parameter([-1, -1], np.int64, name="ids")
    x = ops.parameter([-1, 160], np.float32, name="x")
    nodes = WeightNodes(packed, {})
    whole = nodes.whole()
    found = nodes.rows(ids) if nodes.looks_up() else ops.gather(whole, ids, ops.constant(0))
    model = compiled([found, ops.matmul(x, whole, False, True)], [ids, x])
    feeds = {
        "ids": np.array([[3, 299, 7], [0, 3, 3]]),
        "x": np.random.default_rng(0).normal(size=(2, 160)).astype(np.float32),
    }
    rows, product = model(feeds).values()
    table = dequantize_weight(packed).numpy()
    assert np.allclose(rows, table[feeds["ids"]], atol=1e-6)
    assert np.allclose(product, feeds["x"] @ table.T, atol=1e-3)
    assert kept_in_memory(model)["f32"] <= 300 * 160 // 8  # of both, scales and zero points
