"""CTC recognizers in OpenVINO: what it computes is what the network computes, in planned bytes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import toys

import fedsim
from fedsim.errors import FedsimError
from fedsim.export import export, export_traced
from fedsim.export.check import check
from fedsim.export.openvino import trace
from fedsim.export.openvino_run import Session
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.modelfile import load_leftovers
from fedsim.quant.packable import packable
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import dequantize_weight
from fedsim.speech.models import load_model

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")

CLIPS = toys.clips((0.5, 0.8, 0.63), seed=3)
DEPTHS = (2, 3, 4, 6, 8)
FORMATS = [
    WeightFormat("group_32", True),
    *(
        pytest.param(WeightFormat(*how), marks=pytest.mark.slow)
        for how in (
            ("per_tensor", False),
            ("per_tensor", True),
            ("per_channel", False),
            ("group_64", False),
        )
    ),
]


@pytest.fixture(scope="module")
def ready(model_folder):
    """f(how weights share scales) -> a toy that is ready for files of OpenVINO."""
    model = load_model(model_folder("ctc-layer"))

    def make(weight_format):
        how = {"weight_format": weight_format, "depths": DEPTHS, "settings": {}}
        return packable(model, model.id, **how, format="openvino")

    return make


def quantized(ready, bits):
    full = ready.switch.full_weights()
    return [
        quantize_weight(full[layer.name], depth, ready.weight_format)
        for layer, depth in zip(ready.layers, bits, strict=True)
    ]


def logprobs(model, weights, leftovers, clip):
    """Of the network in transformers, with these weights and inputs in float32."""
    import torch

    switch = switch_of(model)
    pairs = zip(model.layers, weights, strict=True)
    full = {layer.name: dequantize_weight(one) for layer, one in pairs}
    switch.install(full, leftovers, {})
    inputs = model.extractor(clip, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        found = torch.log_softmax(model.module(inputs["input_values"]).logits, -1)[0].numpy()
    switch.restore()
    return found


def opened(folder, setting="float"):
    """f(clips) -> log probabilities (B, F, V) of clips in a batch, by the files of a folder."""
    session = Session(openvino.Core(), folder / "openvino_model.xml", setting)

    def heard(clips):
        lengths = np.array([len(clip) for clip in clips])
        batch = np.zeros((len(clips), lengths.max()), np.float32)
        for row, clip in zip(batch, clips, strict=True):
            row[: len(clip)] = clip
        return session.run(None, {"input_values": batch, "input_lengths": lengths})[0]

    return heard


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
def test_files_compute_what_the_network_does_in_planned_bytes(ready, weight_format, tmp_path):
    toy, rng = ready(weight_format), np.random.default_rng(1)
    traced = trace(toy.model, toy.leftovers)
    plans = [rng.choice(DEPTHS, len(toy.layers)).tolist() for _ in range(2)]
    assert {*plans[0]} == {*DEPTHS}
    plans += [[depth] * len(toy.layers) for depth in (3, 8)]
    for i, bits in enumerate(plans):
        weights = quantized(toy, bits)
        exported = export_traced(traced, weights, tmp_path / f"{i}", to="openvino")
        on_disk = {file.name: file.stat().st_size for file in exported.folder.iterdir()}
        assert on_disk == exported.files
        assert on_disk.keys() == {
            *("openvino_model.xml", "openvino_model.bin", "vocab.txt", "config.json")
        }
        assert sum(on_disk.values()) == toy.sizes.total(bits)
        packed = sum(weight.nbytes for weight in weights)
        floats = sum(value.nbytes for value in toy.leftovers.values())
        assert packed < on_disk["openvino_model.bin"] < packed + floats + 4096
        if i == 0 or bits == [3] * len(bits):
            heard = opened(exported.folder)
            alone = [logprobs(toy.model, weights, toy.leftovers, clip) for clip in CLIPS]
            for clip, expected in zip(CLIPS, alone, strict=True):
                assert np.allclose(heard([clip])[0], expected, atol=2e-4)
            for row, expected in zip(heard(CLIPS), alone, strict=True):  # in one batch
                assert np.allclose(row[: len(expected)], expected, atol=2e-4)


def test_lengths_are_whole_numbers_in_any_precision(ready, tmp_path):
    """Whatever OpenVINO rounds by default, a clip has as many frames as it has."""
    toy = ready(WeightFormat("group_32", True))
    traced = trace(toy.model, toy.leftovers)
    weights = quantized(toy, [8] * len(toy.layers))
    folder = export_traced(traced, weights, tmp_path / "toy", to="openvino").folder
    by_default, exact = opened(folder, "default"), opened(folder)
    for n in (51_405, 38_797, 34_285, 33_641):
        clip = toys.clip(n / 16_000)
        assert len(clip) == n
        found, expected = by_default([clip]), exact([clip])
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(("channels", "taps"), [(12, 16), (4, 8), (6, 16), (16, 16), (1, 32)])
def test_convolutions_in_the_precision_of_the_processor(channels, taps):
    """In bfloat16 OpenVINO 2026.4 computes some of them wrong, unless a tap is added."""
    import onnx
    from onnx import TensorProto, helper

    from fedsim.export.onnx_graph import Skeleton
    from fedsim.export.openvino_network import network

    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(4 * channels, channels, taps)).astype(np.float32)
    shapes = {"x": [1, 4 * channels, "t"], "y": [1, 4 * channels, "u"]}
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=4, pads=[taps // 2] * 2)
    weight = onnx.numpy_helper.from_array(kernel, "w")
    graph = helper.make_graph([node], "one", infos[:1], infos[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = rng.normal(size=(1, 4 * channels, 111)).astype(np.float32)
    session = Session(openvino.Core(), network(Skeleton(model, {})).model, "default")
    (found,) = session.run(None, {"x": x})
    import torch

    expected = torch.nn.functional.conv1d(
        torch.from_numpy(x), torch.from_numpy(kernel), padding=taps // 2, groups=4
    ).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def personalized(toy, budget, **more):
    how = {"allocation": "uniform", "rounding": "nearest", "weights": "group_32"}
    return fedsim.personalize(toy.model, CLIPS, budget_mb=budget / 2**20, **how, **more)


def test_a_budget_for_the_files_holds(ready, tmp_path):
    toy = ready(WeightFormat("group_32", True))
    exact = toy.sizes.total([3] * len(toy.layers))
    mine = personalized(toy, exact, format="openvino")
    assert {*mine.bits.values()} == {3}
    assert {*personalized(toy, exact - 1, format="openvino").bits.values()} == {2}
    assert mine.export(tmp_path / "exact", to="openvino").nbytes == exact
    with pytest.raises(FedsimError, match=r"\[4, 5\]: use whole depths of 2, 3, 4, 6, 8"):
        personalized(toy, exact, format="openvino", bit_depths=(4, 5))


@pytest.mark.slow
def test_the_check_hears_the_same(ready, tmp_path):
    toy = ready(WeightFormat("group_32", True))
    mine = personalized(toy, 2**20, bit_depths=(6,))
    exported = mine.export(tmp_path / "toy", to="openvino")
    leftovers = load_leftovers(mine.file.leftovers)
    checked = check(mine.model, mine.file.weights, leftovers, exported, CLIPS)
    assert [ran.setting for ran in checked.ran] == ["float", "default"]
    assert checked.equal(checked.ran[0]) == len(CLIPS)
    assert all(checked.emulated)  # a model that says nothing would agree with anything
    for ran in checked.ran:
        assert ran.ms_per_s > 0
        assert 0 < ran.loaded_bytes <= ran.work_bytes


def test_depths_that_openvino_lacks(ready, tmp_path):
    toy = ready(WeightFormat("group_32", True))
    for bits, wider in ((5, 6), (7, 8)):
        mine = personalized(toy, 2**20, bit_depths=(bits,))
        with pytest.raises(FedsimError, match=r"2, 3, 4, 6, 8 bits, and \d+ layers have"):
            mine.export(tmp_path / f"{bits}", to="openvino")
        assert not (tmp_path / f"{bits}").exists()
        exported = mine.export(tmp_path / f"{bits}", to="openvino", widen=True)
        assert exported.nbytes == toy.sizes.total([wider] * len(toy.layers))
        leftovers = load_leftovers(mine.file.leftovers)
        expected = logprobs(toy.model, mine.file.weights, leftovers, CLIPS[0])
        assert np.allclose(opened(exported.folder)(CLIPS[:1])[0], expected, atol=2e-4)


def test_what_cannot_be_exported(model_folder, tmp_path):
    model = load_model(model_folder("classifier-layer"))
    mine = fedsim.personalize(
        model, CLIPS, budget_mb=1, bit_depths=(8,), allocation="uniform", rounding="nearest"
    )
    with pytest.raises(FedsimError, match=r"ForSequenceClassification.* Whisper .* to openvino"):
        mine.export(tmp_path / "a", to="openvino")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_in_one_sentence(ready, tmp_path, monkeypatch):
    toy = ready(WeightFormat("group_32", True))
    weights = quantized(toy, [3] * len(toy.layers))
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    with pytest.raises(FedsimError) as caught:
        export(toy.model, weights, toy.leftovers, tmp_path / "a", to="openvino")
    text = "the package openvino is not installed: pip install 'fedsim-speech[openvino]'"
    assert str(caught.value) == text
    assert not list(tmp_path.iterdir())


def test_nothing_of_torch_is_needed_to_run_the_files():
    """The program of the check: numpy and OpenVINO alone."""
    program = """
import sys
import fedsim.export.openvino_run
print([name for name in ("torch", "transformers", "onnx", "onnxruntime") if name in sys.modules])
"""
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert out.stdout == "[]\n"
