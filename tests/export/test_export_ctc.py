"""CTC recognizers in ONNX: what onnxruntime computes is what the network computes."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import toys

import fedsim
from fedsim.errors import FedsimError
from fedsim.export.check import check
from fedsim.quant.formats import FORMATS
from fedsim.quant.modelfile import load_leftovers
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import dequantize_weight
from fedsim.speech.models import load_model

CLIPS = toys.clips((0.5, 0.8, 0.63), seed=3)
DEPTHS = (2, 4, 6, 8)


@pytest.fixture(scope="module")
def made(model_folder, tmp_path_factory):
    """f(toy) -> a personalized model with all of `DEPTHS`, and the folder of its export."""
    known = {}

    def make(name):
        if name not in known:
            model = load_model(model_folder(name))
            mine = fedsim.personalize(model, CLIPS, budget_mb=0.027, bit_depths=DEPTHS)
            folder = tmp_path_factory.mktemp(name) / "onnx"
            known[name] = mine, mine.export(folder)
        return known[name]

    return make


def logprobs(mine, clip):
    """Of the network with the file's weights and inputs in float32, of one clip by itself."""
    model = mine.model
    switch = switch_of(model)
    pairs = zip(model.layers, mine.file.weights, strict=True)
    weights = {layer.name: dequantize_weight(one) for layer, one in pairs}
    switch.install(weights, load_leftovers(mine.file.leftovers), {})
    inputs = model.extractor(clip, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        found = torch.log_softmax(model.module(inputs["input_values"]).logits, -1)[0].numpy()
    switch.restore()
    return found


def session(exported):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(exported.folder / "model.onnx"), options)


@pytest.mark.parametrize("name", [pytest.param("ctc-group", marks=pytest.mark.slow), "ctc-layer"])
def test_the_runtime_computes_what_the_network_does(made, name):
    mine, exported = made(name)
    assert len(set(mine.bits.values())) > 1  # or this shows little
    found = session(exported)
    for clip in CLIPS:
        lengths = np.array([len(clip)])
        (out,) = found.run(None, {"input_values": clip[None], "input_lengths": lengths})
        assert np.allclose(out[0], logprobs(mine, clip), atol=2e-4)


def test_clips_of_different_lengths_share_a_batch(made):
    mine, exported = made("ctc-layer")
    lengths = np.array([len(clip) for clip in CLIPS])
    batch = np.zeros((len(CLIPS), lengths.max()), np.float32)
    for row, clip in zip(batch, CLIPS, strict=True):
        row[: len(clip)] = clip
    (out,) = session(exported).run(None, {"input_values": batch, "input_lengths": lengths})
    for row, clip in zip(out, CLIPS, strict=True):
        alone = logprobs(mine, clip)
        assert np.allclose(row[: len(alone)], alone, atol=2e-4)


@pytest.mark.slow
def test_where_padding_matters_a_batch_is_one_clip(made):
    _, exported = made("ctc-group")
    (shape,) = (i.shape for i in session(exported).get_inputs() if i.name == "input_values")
    assert shape[0] == 1


def test_weights_stay_packed_and_every_byte_counts(made):
    mine, exported = made("ctc-layer")
    assert exported.files == {f.name: f.stat().st_size for f in exported.folder.iterdir()}
    assert exported.nbytes == sum(exported.files.values())
    graph = onnx.load(exported.folder / "model.onnx").graph
    kinds = {onnx.TensorProto.DataType.Name(t.data_type) for t in graph.initializer}
    assert kinds & {"INT2", "UINT2", "INT4", "UINT4"}
    stored = [t for t in graph.initializer if t.name.endswith(".codes")]
    in_file = sum(len(t.raw_data) for t in stored)
    packed = sum(weight.payload.nbytes for weight in mine.file.weights)
    assert packed <= in_file <= 1.05 * packed + 64  # spare columns, and bytes begun
    largest = max(
        (t for t in graph.initializer if not t.name.endswith(".codes")),
        key=lambda t: len(t.raw_data),
    )
    assert len(largest.raw_data) < packed / 10  # no weight is left in floating point


def test_the_files_beside_the_graph(made):
    mine, exported = made("ctc-layer")
    lines = (exported.folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    numbers = {int(number): token for token, number in (line.rsplit(" ", 1) for line in lines)}
    vocabulary = mine.model.tokenizer.get_vocab()
    assert numbers.keys() == set(vocabulary.values())
    assert numbers[mine.model.module.config.pad_token_id] == "<blk>"
    assert numbers[vocabulary["|"]] == "\u2581"
    config = json.loads((exported.folder / "config.json").read_text())
    strides = int(np.prod(mine.model.module.config.conv_stride))
    assert config == {"model_type": "wav2vec2-ctc", "subsampling_factor": strides}


def test_the_check_hears_the_same(made):
    mine, exported = made("ctc-layer")
    leftovers = load_leftovers(mine.file.leftovers)
    checked = check(mine.model, mine.file.weights, leftovers, exported, CLIPS)
    assert [ran.setting for ran in checked.ran] == ["0", "4"]
    assert checked.equal(checked.ran[0]) == len(CLIPS)
    assert all(checked.emulated)  # a model that says nothing would agree with anything
    for ran in checked.ran:
        assert ran.ms_per_s > 0
        assert 0 < ran.loaded_bytes <= ran.work_bytes


@pytest.mark.slow
def test_depths_that_onnx_lacks(model_folder, tmp_path):
    model = load_model(model_folder("ctc-layer"))
    mine = fedsim.personalize(model, CLIPS, budget_mb=0.027, bit_depths=(3, 5, 7))
    with pytest.raises(FedsimError, match=r"2, 4, 6, 8 bits, and \d+ layers have .*\[2, 4, 6, 8\]"):
        mine.export(tmp_path / "a")
    assert not list(tmp_path.iterdir())
    wider = mine.export(tmp_path / "a", widen=True)
    clip = CLIPS[0]
    inputs = {"input_values": clip[None], "input_lengths": np.array([len(clip)])}
    assert np.allclose(session(wider).run(None, inputs)[0][0], logprobs(mine, clip), atol=2e-4)


def test_what_cannot_be_exported(made, tmp_path):
    mine, exported = made("ctc-layer")
    with pytest.raises(FedsimError, match="is not empty: name a new folder"):
        mine.export(exported.folder)
    with pytest.raises(FedsimError, match="no export format 'onxx': did you mean 'onnx'"):
        mine.export(tmp_path / "a", to="onxx")
    (tmp_path / "file").write_text("")
    with pytest.raises(FedsimError, match=r"file/a cannot be written"):
        mine.export(tmp_path / "file" / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert list(FORMATS) == ["onnx", "openvino"]
