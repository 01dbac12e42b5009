"""Raw-audio CTC recognizers of every family in ONNX and OpenVINO: equal to the network."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
import toys
from family_toys import TOYS

import fedsim
from fedsim.errors import FedsimError
from fedsim.export.onnx_weights import DEPTHS
from fedsim.export.openvino_run import Session
from fedsim.quant.modelfile import load_leftovers
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import dequantize_weight
from fedsim.speech.models import load_model

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")
CLIPS = toys.clips((0.5, 0.8, 0.63), seed=3)
RAW = [
    name
    for name, toy in TOYS.items()
    if "CTC" in name and "Bert" not in name and hasattr(toy.config(), "conv_stride")
]
pytestmark = pytest.mark.slow


def answers(session, feeds) -> bool:
    """Whether OpenVINO returns anything, and no sentence that says why not."""
    try:
        session.run(None, feeds)
    except FedsimError as error:
        return "INFERENCE_PRECISION_HINT" not in str(error)
    return True


@pytest.mark.parametrize("name", RAW)
def test_a_family_in_the_runtime(name, tmp_path):
    model = load_model(TOYS[name].save(tmp_path / "model"))
    least = fedsim.personalize(model, CLIPS, budget_mb=9, allocation="uniform", bit_depths=(2,))
    mine = fedsim.personalize(model, CLIPS, budget_mb=1.4 * least.nbytes / 2**20, bit_depths=DEPTHS)
    try:
        exported = mine.export(tmp_path / "onnx")
    except FedsimError as error:
        pytest.fail(f"{name}: {error}")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(exported.folder / "model.onnx"), options)
    other = mine.export(tmp_path / "openvino", to="openvino")
    again = Session(openvino.Core(), other.folder / "openvino_model.xml", "float")
    by_default = Session(openvino.Core(), other.folder / "openvino_model.xml", "default")
    switch = switch_of(model)
    pairs = zip(model.layers, mine.file.weights, strict=True)
    switch.install(
        {layer.name: dequantize_weight(one) for layer, one in pairs},
        load_leftovers(mine.file.leftovers),
        {},
    )
    for clip in CLIPS:
        inputs = model.extractor(clip, sampling_rate=16_000, return_tensors="pt")
        with torch.inference_mode():
            logits = model.module(inputs["input_values"]).logits
        truth = torch.log_softmax(logits, -1)[0].numpy()
        feeds = {"input_values": clip[None], "input_lengths": np.array([len(clip)])}
        for runtime in (session, again):
            (found,) = runtime.run(None, feeds)
            assert np.allclose(found[0], truth, atol=1e-3), np.abs(found[0] - truth).max()
        if not answers(by_default, feeds):  # 2 bits in bfloat16, on some processors
            assert 2 in mine.bits.values()
            continue
        (found,) = by_default.run(None, feeds)
        assert found[0].shape == truth.shape
        assert np.abs(found[0] - truth).max() < 0.2 * np.abs(truth).max()
    switch.restore()
