"""Where exported files and their numbers part."""

from __future__ import annotations

from dataclasses import replace

import pytest
import toys

import fedsim
from fedsim.export import export_traced
from fedsim.export.check import Checked, Ran, worse
from fedsim.export.parting import first_parting
from fedsim.quant.formats import FORMATS
from fedsim.quant.modelfile import load_leftovers
from fedsim.speech.models import load_model

CLIPS = toys.clips((0.5, 0.8), seed=3)
CASES = {
    "ctc-layer": (["model.onnx"], 0.027),
    "whisper": (["encoder_model.onnx", "decoder_model_merged.onnx"], 0.2),
}


@pytest.fixture(scope="module", params=["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def to(request):
    """A format."""
    pytest.importorskip(request.param, reason=f"the extra {request.param} is not installed")
    return request.param


@pytest.fixture(
    scope="module", params=["ctc-layer", pytest.param("whisper", marks=pytest.mark.slow)]
)
def made(request, model_folder, to):
    """A personalized model, its traced network, and the names of its graphs."""
    graphs, budget = CASES[request.param]
    model = load_model(model_folder(request.param))
    mine = fedsim.personalize(model, CLIPS, budget_mb=budget, bit_depths=(4, 6, 8))
    return mine, FORMATS[to].trace(model, load_leftovers(mine.file.leftovers)), graphs


def found(made, to, weights, folder):
    """Where files with these weights part from the model's own."""
    mine, traced, _ = made
    export_traced(traced, weights, folder, to=to)
    setting = next(iter(FORMATS[to].program.settings))
    own = mine.file.weights
    return first_parting(mine.model, traced, own, folder, CLIPS[0], to=to, setting=setting)


def test_in_float32_they_part_nowhere(made, to, tmp_path):
    mine, *_ = made
    assert found(made, to, mine.file.weights, tmp_path / "files") is None


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_layer_with_wrong_scales_is_named(made, to, tmp_path, share):
    """In the file; layers behind it differ too, those before it do not."""
    mine, _, graphs = made
    for graph in graphs:
        part = graph.partition("_")[0]
        linear = [
            i
            for i, layer in enumerate(mine.model.layers)
            if layer.kind == "linear" and (len(graphs) == 1 or f".{part}." in layer.name)
        ]
        layer, weights = linear[int(share * len(linear))], list(mine.file.weights)
        weights[layer] = replace(weights[layer], scales=3 * weights[layer].scales)
        parting = found(made, to, weights, tmp_path / part)
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
