"""Packed weights in ONNX, executed by onnxruntime."""

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

from fedsim.export.onnx_weights import STORED, dequantized
from fedsim.quant.granularities import GRANULARITIES, WeightFormat
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.weights import PackedWeight, dequantize_weight

FORMATS = [WeightFormat(name, zeros) for name in GRANULARITIES for zeros in (False, True)]


def weight_of(
    n: int, k: int, bits: int, weight_format: WeightFormat, seed: int = 0
) -> PackedWeight:
    values = np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32)
    return quantize_weight(torch.from_numpy(values), bits, weight_format)


def model_of(packed: PackedWeight, *, product: bool) -> onnx.ModelProto:
    """A graph whose output is the weight (N, K), or with `product` x (T, K) times its transpose."""
    n, k = packed.shape
    weight = dequantized("w", packed, transposed=product)
    nodes, outputs = list(weight.nodes), list(weight.outputs)
    if product:
        products = [f"y{i}" for i in range(len(outputs))]
        nodes += [
            helper.make_node("MatMul", ["x", one], [y])
            for one, y in zip(outputs, products, strict=True)
        ]
        outputs = products
    last = "Sum" if len(outputs) == 2 else "Identity"  # an Add would be fused, and nothing else
    nodes.append(helper.make_node(last, outputs, ["all"]))
    if product and weight.n_columns > n:
        nodes.append(helper.make_node("Slice", ["all", "from", "to", "axis"], ["out"]))
        extra = [("from", 0), ("to", n), ("axis", 1)]
    else:
        nodes.append(helper.make_node("Identity", ["all"], ["out"]))
        extra = []
    numbers = [helper.make_tensor(name, TensorProto.INT64, (1,), [v]) for name, v in extra]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", k])],
        [
            helper.make_tensor_value_info(
                "out", TensorProto.FLOAT, ["t" if product else n, n if product else k]
            )
        ],
        [*weight.initializers, *numbers],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, x: np.ndarray, optimized: str = "") -> np.ndarray:
    """The output at accuracy level 0: inputs in float32, as by default they are not."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = optimized
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
@pytest.mark.parametrize("bits", STORED)
def test_the_weight_is_the_same_number_for_number(bits, weight_format):
    packed = weight_of(5, 150, bits, weight_format)
    found = run(model_of(packed, product=False), np.zeros((1, 150), np.float32))
    assert np.array_equal(found, dequantize_weight(packed).numpy())


@settings(max_examples=examples(40))
@given(
    st.integers(1, 9),
    st.integers(1, 140),
    st.sampled_from(sorted(STORED)),
    st.sampled_from(FORMATS),
    st.integers(0, 99),
)
def test_products_of_any_shape(n, k, bits, weight_format, seed):
    packed = weight_of(n, k, bits, weight_format, seed)
    x = np.random.default_rng(seed).normal(size=(3, k)).astype(np.float32)
    found = run(model_of(packed, product=True), x)
    assert np.allclose(found, x @ dequantize_weight(packed).numpy().T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
@pytest.mark.parametrize("bits", STORED)
def test_a_product_is_one_fused_kernel_for_each_part(bits, weight_format, tmp_path):
    """Nothing is unpacked in memory: onnxruntime computes with the packed codes."""
    model = model_of(weight_of(64, 192, bits, weight_format), product=True)
    run(model, np.zeros((1, 192), np.float32), str(tmp_path / "optimized.onnx"))
    optimized = onnx.load(tmp_path / "optimized.onnx")
    kinds = collections.Counter(node.op_type for node in optimized.graph.node)
    assert kinds["MatMulNBits"] == (2 if STORED[bits] == 6 else 1)
    assert kinds["DequantizeLinear"] == 0
