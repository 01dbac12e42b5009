"""Planned sizes are those of the files, to the byte, for every plan."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from properties import examples

import fedsim
from fedsim.base.paths import cache_dir
from fedsim.errors import BudgetError, FedsimError
from fedsim.export import export_traced
from fedsim.export.onnx import Traced, sizes, trace
from fedsim.export.onnx_graph import fill, length_bytes, skeleton
from fedsim.quant.granularities import GRANULARITIES, WeightFormat
from fedsim.quant.layers import Layer
from fedsim.quant.packable import packable
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.weights import dequantize_weight
from fedsim.speech.models import load_model

DEPTHS = (2, 4, 6, 8)
FORMATS = [WeightFormat(name, zeros) for name in GRANULARITIES for zeros in (False, True)]
CLIPS = toys.clips((0.5, 0.8), seed=3)


def _toy() -> tuple[onnx.ModelProto, list[Layer], list[np.ndarray]]:
    """A network with each use of a weight: products both ways round, a convolution, a look-up, and
    one weight used twice; outputs that are no multiple of four."""
    rng = np.random.default_rng(0)
    shapes = {"table": (9, 7), "conv": (7, 7, 3), "linear": (37, 7), "gemm": (37, 37)}
    weights = [rng.normal(size=shape).astype(np.float32) for shape in shapes.values()]
    table, conv, linear, gemm = weights
    tensors = {
        "E": table,
        "C": conv,
        "L": linear.T.copy(),
        "G": gemm,
        "bias": rng.normal(size=37).astype(np.float32),
    }
    make = helper.make_node
    nodes = [
        make("Gather", ["E", "ids"], ["found"]),
        make("Transpose", ["found"], ["turned"], perm=[0, 2, 1]),
        make("Conv", ["turned", "C"], ["conv"], pads=[1, 1]),
        make("Transpose", ["conv"], ["back"], perm=[0, 2, 1]),
        make("MatMul", ["back", "L"], ["wide"]),
        make("ReduceMean", ["wide"], ["mean"], keepdims=0),
        make("Unsqueeze", ["mean", "zero"], ["row"]),
        make("Mul", ["row", "bias"], ["scaled"]),
        make("Gemm", ["scaled", "G", "bias"], ["product"], transB=1),
        make("Transpose", ["E"], ["E.t"], perm=[1, 0]),
        make("MatMul", ["back", "E.t"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "t"])],
        [
            helper.make_tensor_value_info("product", TensorProto.FLOAT, [1, 37]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "t", 9]),
        ],
        [
            *(numpy_helper.from_array(values, name) for name, values in tensors.items()),
            helper.make_tensor("zero", TensorProto.INT64, (1,), [0]),
        ],
    )
    layers = [Layer(name, "linear", shape) for name, shape in shapes.items()]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model, layers, weights


TRACED, LAYERS, WEIGHTS = _toy()
BARE = skeleton(TRACED, WEIGHTS)
ROOM = 6 + 64  # the text, and any language
TOY = Traced(
    {"model.onnx": BARE}, lambda rows, language: {"config.json": "ü" * 3}, lambda rows: ROOM
)


def packed(bits, weight_format):
    return [
        quantize_weight(torch.from_numpy(values), depth, weight_format)
        for values, depth in zip(WEIGHTS, bits, strict=True)
    ]


@settings(max_examples=examples(60), deadline=None, derandomize=True, database=None)
@given(st.tuples(*[st.sampled_from(DEPTHS)] * 4), st.sampled_from(FORMATS))
def test_every_plan_takes_what_was_planned(bits, weight_format):
    planned = sizes(TOY, LAYERS, weight_format, DEPTHS)
    filled = fill(BARE, packed(bits, weight_format))
    assert len(filled.SerializeToString()) + ROOM == planned.total(bits)
    assert (np.diff(planned.layer_bytes) >= 0).all()  # a depth more never makes a file smaller
    some = sizes(TOY, LAYERS, weight_format, (4, 8))
    assert some.total([4, 8, 8, 4]) == planned.total([4, 8, 8, 4])


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.one_of(st.integers(0, 400), st.integers(16_000, 16_800), st.integers(0, 3_000_000)))
def test_a_file_is_as_much_longer_as_it_has_to_be(spare):
    plan = packed((4, 8, 2, 6), WeightFormat("group_32", True))
    one, other = (fill(BARE, plan, n) for n in (0, spare))
    assert len(other.SerializeToString()) - len(one.SerializeToString()) == spare
    assert len(other.metadata_props) <= 1


@pytest.mark.parametrize("bits", [(4, 8, 4, 8), (2, 2, 2, 2), (8, 6, 4, 2), (6, 6, 6, 6)], ids=str)
def test_a_network_is_filled_again_and_again(bits):
    """The runtime computes what the weights say, whatever was filled in before."""
    weight_format = WeightFormat("group_32", True)
    plan = packed(bits, weight_format)
    first = fill(BARE, plan).SerializeToString()
    fill(BARE, packed(bits[::-1], weight_format))
    again = fill(BARE, plan)
    assert again.SerializeToString() == first
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    options.log_severity_level = 3
    ids = np.array([[0, 8, 3, 3, 5]])
    found = onnxruntime.InferenceSession(first, options).run(None, {"ids": ids})
    table, conv, linear, gemm = (dequantize_weight(one) for one in plan)
    seen = torch.nn.functional.conv1d(table[ids].transpose(1, 2), conv, padding=1).transpose(1, 2)
    bias = torch.tensor(numpy_helper.to_array(TRACED.graph.initializer[4]))
    row = (seen @ linear.T).mean() * bias
    assert np.allclose(found[0], (row[None] @ gemm.T + bias).numpy(), atol=1e-4)
    assert np.allclose(found[1], (seen @ table.T).numpy(), atol=5e-4)  # at 2 bits inputs round


@settings(max_examples=examples(200), derandomize=True, database=None)
@given(st.integers(0, 2**31 - 1))
def test_the_length_of_a_length(n):
    """Worked out by protobuf itself: a field is its tag, and the number in groups of 7 bits."""
    field = helper.make_model(helper.make_graph([], "g", [], []))
    field.model_version = 0
    before = field.ByteSize()
    field.model_version = n
    assert field.ByteSize() - before == length_bytes(n) - length_bytes(0)


def packable_toy(folder):
    model, how = load_model(folder), WeightFormat("group_32", True)
    return packable(model, model.id, weight_format=how, depths=DEPTHS, settings={}, format="onnx")


@pytest.fixture(scope="module")
def ready(model_folder):
    return packable_toy(model_folder("ctc-layer"))


@pytest.mark.parametrize("name", ["ctc-layer", "whisper"])
def test_files_on_disk_take_what_was_planned(model_folder, name, tmp_path):
    """Whoever speaks, though some files name the language."""
    ready = packable_toy(model_folder(name))
    traced = trace(ready.model, ready.leftovers)
    full, rng = ready.switch.full_weights(), np.random.default_rng(1)
    plans = [rng.choice(DEPTHS, len(ready.layers)).tolist() for _ in range(6)]
    plans += [[depth] * len(ready.layers) for depth in DEPTHS]
    for i, bits in enumerate(plans):
        weights = [
            quantize_weight(full[layer.name], depth, ready.weight_format)
            for layer, depth in zip(ready.layers, bits, strict=True)
        ]
        language = ("it", "en", None)[i % 3]
        exported = export_traced(traced, weights, tmp_path / f"{i}", to="onnx", language=language)
        on_disk = sum(file.stat().st_size for file in (tmp_path / f"{i}").iterdir())
        assert on_disk == exported.nbytes == ready.sizes.total(bits)


def test_a_budget_for_the_exported_files_holds(ready, tmp_path):
    """Of exactly the bytes of a plan: it fits, and with one byte less the plan is another."""
    exact = ready.sizes.total([4] * len(ready.layers))
    how = {"rounding": "nearest", "weights": "group_32", "format": "onnx"}

    def made(budget, **more):
        return fedsim.personalize(
            ready.model, CLIPS, budget_mb=budget / 2**20, allocation="uniform", **how, **more
        )

    mine = made(exact)
    assert {*mine.bits.values()} == {4}
    assert mine.export(tmp_path / "exact").nbytes == exact
    mine.save(tmp_path / "mine.safetensors")
    assert mine.nbytes == (tmp_path / "mine.safetensors").stat().st_size < exact
    loaded = fedsim.load_personalized(tmp_path / "mine.safetensors", ready.model)
    assert (mine.format, loaded.format) == ("onnx", "onnx")
    assert {*made(exact - 1).bits.values()} == {2}
    with pytest.raises(BudgetError, match="smallest feasible"):
        made(ready.sizes.total([2] * len(ready.layers)) - 1)
    with pytest.raises(FedsimError, match=r"\[3, 4\]: use whole depths of 2, 4, 6, 8"):
        made(exact, bit_depths=(3, 4))
    with pytest.raises(FedsimError, match="no export format 'onxx': did you mean 'onnx'"):
        fedsim.personalize(ready.model, CLIPS, budget_mb=1, format="onxx")


@pytest.mark.slow
def test_a_damaged_trace_counts_as_none(ready):
    traced = trace(ready.model, ready.leftovers)
    files = sorted((cache_dir() / "onnx").glob("*.safetensors"))
    kept = {file: file.read_bytes() for file in files}
    for file, data in kept.items():
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    again = trace(ready.model, ready.leftovers)
    assert again.graphs.keys() == traced.graphs.keys()
    for name, bare in again.graphs.items():
        assert bare.weights == traced.graphs[name].weights
        assert bare.traced == traced.graphs[name].traced
    assert any(file.read_bytes() == data for file, data in kept.items())  # traced, and kept again
