"""Where exported files and their numbers part."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
import toys
from onnx import numpy_helper

import fedsim
from fedsim.export.check import Checked, Ran, worse
from fedsim.export.onnx import trace
from fedsim.export.parting import first_parting
from fedsim.quant.modelfile import load_leftovers
from fedsim.speech.models import load_model

CLIPS = toys.clips((0.5, 0.8), seed=3)
CASES = {
    "ctc-layer": ("model.onnx", 0.027),
    "whisper": ("decoder_model_merged.onnx", 0.2),
}


@pytest.fixture(
    scope="module", params=["ctc-layer", pytest.param("whisper", marks=pytest.mark.slow)]
)
def made(request, model_folder, tmp_path_factory):
    """A personalized model, its traced network, its exported folder, and one of the graphs."""
    graph, budget = CASES[request.param]
    model = load_model(model_folder(request.param))
    mine = fedsim.personalize(model, CLIPS, budget_mb=budget, bit_depths=(4, 8))
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    mine.export(folder)
    return mine, trace(model, load_leftovers(mine.file.leftovers)), folder, graph


def found(made, folder, level):
    mine, traced, *_ = made
    return first_parting(mine.model, traced, mine.file.weights, folder, CLIPS[0], level)


def test_with_float_inputs_they_part_nowhere(made):
    assert found(made, made[2], 0) is None


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_layer_with_wrong_scales_is_named(made, tmp_path, share):
    """In the file; layers behind it differ too, those before it do not."""
    mine, traced, exported, graph = made
    folder = shutil.copytree(exported, tmp_path / "onnx")
    file = onnx.load(folder / graph)
    used = sorted({tensor.layer for tensor in traced.graphs[graph].weights.values()})
    linear = [i for i in used if mine.model.layers[i].kind == "linear"]
    layer = linear[int(share * len(linear))]
    scales = [t for t in file.graph.initializer if t.name.startswith(f"layer{layer}.")]
    (scale,) = [t for t in scales if t.name.endswith(".scales")]
    wrong = (3 * numpy_helper.to_array(scale)).astype(np.float16)
    scale.CopyFrom(numpy_helper.from_array(wrong, scale.name))
    onnx.save(file, folder / graph)
    parting = found(made, folder, 0)
    assert (parting.graph, parting.layer) == (graph, mine.model.layers[layer].name)
    assert parting.difference > parting.final / 2


def test_only_what_is_certainly_worse_is_named():
    texts = ["one two three four"] * 30

    def ran(setting, wrong):
        heard = ["one two three for" if i < wrong else text for i, text in enumerate(texts)]
        return Ran(setting, tuple(heard), 1.0, 1, 1)

    checked = Checked(tuple(texts), (ran("0", 1), ran("4", 20)))
    ((first, difference),) = worse(checked, texts)
    assert first.setting == "4"
    assert difference.difference == pytest.approx(20 / 120)
    assert difference.low > 0
    assert not worse(Checked(tuple(texts), (ran(0, 0), ran(4, 0))), texts)
