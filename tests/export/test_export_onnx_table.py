"""A table of tokens in ONNX: rows are looked up and multiplied with, from one copy of the codes."""

from __future__ import annotations

import collections

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from properties import examples

from fedsim.export.onnx_table import DOMAIN, Table
from fedsim.export.onnx_weights import STORED
from fedsim.quant.granularities import GRANULARITIES, WeightFormat
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.weights import dequantize_weight

FORMATS = [WeightFormat(name, zeros) for name in GRANULARITIES for zeros in (False, True)]


def table_of(n, k, bits, weight_format, seed=0):
    values = np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32)
    return quantize_weight(torch.from_numpy(values), bits, weight_format)


def model_of(packed) -> onnx.ModelProto:
    """A graph with the inputs `ids` (B, U) and `x` (B, U, K), and the outputs `rows` and `y`."""
    n, k = packed.shape
    table = Table("table", packed)
    nodes = [*table.look_up("ids", "rows"), *table.product("x", "y")]
    graph = helper.make_graph(
        nodes,
        "one",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "u"]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "u", k]),
        ],
        [
            helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["b", "u", k]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "u", n]),
        ],
        table.initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    return model


def run(model, ids, x, optimized=""):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = optimized
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"ids": ids, "x": x})


@settings(max_examples=examples(25), deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 140),
    st.sampled_from(sorted(STORED)),
    st.sampled_from(FORMATS),
    st.integers(0, 99),
)
def test_rows_and_products_of_any_shape(n, k, bits, weight_format, seed):
    packed = table_of(n, k, bits, weight_format, seed)
    whole = dequantize_weight(packed).numpy()
    rng = np.random.default_rng(seed)
    ids, x = rng.integers(0, n, (2, 3)), rng.normal(size=(2, 3, k)).astype(np.float32)
    rows, products = run(model_of(packed), ids, x)
    assert np.allclose(rows, whole[ids], rtol=1e-6, atol=1e-6)
    # Where codes of 2 bits are involved, inputs are rounded: to 1/254 of 1/254 of the largest.
    size = np.abs(x).max() * np.abs(whole).sum(axis=1).max()
    assert np.allclose(products, x @ whole.T, atol=1e-4 * size + 1e-5)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", STORED)
def test_nothing_is_dequantized_and_codes_lie_once(bits, zeros, tmp_path):
    packed = table_of(300, 192, bits, WeightFormat("group_64", zeros))
    model = model_of(packed)
    file = tmp_path / "optimized.onnx"
    run(model, np.zeros((1, 1), np.int64), np.zeros((1, 1, 192), np.float32), str(file))
    kinds = collections.Counter(node.op_type for node in onnx.load(file).graph.node)
    assert kinds["DequantizeLinear"] == kinds["MatMul"] == 0
    assert kinds["MatMulNBits"] == {2: 2, 4: 1, 6: 3, 8: 2}[STORED[bits]]
    codes = sum(len(t.raw_data) for t in model.graph.initializer if t.name.endswith(".codes"))
    assert codes == 300 * 192 * STORED[bits] // 8
    others = sum(len(t.raw_data) for t in model.graph.initializer) - codes
    scales, points = 300 * 3 * 2, 300 * 4 * (bits > 4 or 1)
    assert others <= scales + zeros * 2 * points + 400
