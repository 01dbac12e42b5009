"""Whisper in OpenVINO: what it computes is what the network computes, in planned bytes."""

from __future__ import annotations

import json
import resource

import numpy as np
import pytest
import torch
import toys
import vocabulary_toys

import fedsim
from fedsim.errors import FedsimError
from fedsim.export import export_traced, run_whisper
from fedsim.export.check import check
from fedsim.export.openvino import trace
from fedsim.export.openvino_graph import fill
from fedsim.export.openvino_run import SETTINGS, Session, text_file
from fedsim.export.run_whisper import DECODER, ENCODER
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.modelfile import load_leftovers
from fedsim.quant.packable import packable
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import dequantize_weight
from fedsim.speech.models import load_model
from fedsim.speech.models.base import transcribe_clips

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")

CLIPS = toys.clips((0.5, 0.8, 0.63), seed=3)
DEPTHS = (2, 3, 4, 6, 8)
QUICK = {"allocation": "shuffled", "rounding": "nearest", "calibration": "float"}
GRAPHS = {
    *("openvino_encoder_model.xml", "openvino_encoder_model.bin"),
    *("openvino_decoder_model_merged.xml", "openvino_decoder_model_merged.bin"),
}


@pytest.fixture(scope="module")
def traced(model_folder):
    """A toy, and its network in OpenVINO."""
    model = load_model(model_folder("whisper"))
    toy = ready(model, WeightFormat("group_32", True))
    return model, trace(model, toy.leftovers)


def ready(model, weight_format):
    how = {"weight_format": weight_format, "depths": DEPTHS, "settings": {}}
    return packable(model, model.id, **how, format="openvino")


def quantized(toy, bits):
    full = toy.switch.full_weights()
    return [
        quantize_weight(full[layer.name], depth, toy.weight_format)
        for layer, depth in zip(toy.layers, bits, strict=True)
    ]


def installed(model, weights, leftovers, rows=None):
    """The switch of a model with these weights and inputs in float32."""
    switch = switch_of(model)
    pairs = zip(model.layers, weights, strict=True)
    full = {layer.name: dequantize_weight(one) for layer, one in pairs}
    switch.install(full, leftovers, {}, rows=rows)
    return switch


def session(folder, name, setting="float"):
    return Session(openvino.Core(), text_file(folder / name), setting)


def opened(folder, setting="float"):
    return run_whisper.opened(folder, lambda name: session(folder, name, setting))


def computed(folder, features, ids, empty):
    """Encoded frames, and logits of tokens given in three calls, with what the decoder kept."""
    (states,) = session(folder, ENCODER).run(None, {"input_features": features})
    decoder = session(folder, DECODER)
    olds = [i for i in decoder.get_inputs() if i.name.startswith("past_key_values.")]
    clips, length = (0, 0) if empty == "no clips" else (len(ids), 1)
    sizes = [(clips, i.shape[1], length, i.shape[3]) for i in olds]
    past = {i.name: np.full(size, 3, np.float32) for i, size in zip(olds, sizes, strict=True)}
    logits = []
    for begin, end in ((0, 3), (3, 4), (4, 6)):
        feeds = {"input_ids": ids[:, begin:end], "encoder_hidden_states": states, **past}
        feeds["use_cache_branch"] = np.array([begin > 0])
        found, *presents = decoder.run(None, feeds)
        logits.append(found)
        pairs = zip(past, presents, strict=True)
        past |= {name: present for name, present in pairs if len(present)}
    return states, np.concatenate(logits, axis=1)


PLANS = [
    "mixed",
    *(
        pytest.param(how, marks=pytest.mark.slow)
        for how in (
            *DEPTHS,
            ("per_tensor", False),
            ("per_tensor", True),
            ("per_channel", False),
            ("per_channel", True),
            ("group_64", False),
        )
    ),
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_files_compute_what_the_network_does_in_planned_bytes(traced, plan, tmp_path):
    """With and without the cache, in a batch; at each depth, and at all of them together."""
    model, network = traced
    weight_format = (
        WeightFormat(*plan) if isinstance(plan, tuple) else WeightFormat("group_32", True)
    )
    toy = ready(model, weight_format)
    mixed = np.random.default_rng(1).choice(DEPTHS, len(toy.layers)).tolist()
    assert {*mixed} == {*DEPTHS}
    bits = [plan] * len(toy.layers) if isinstance(plan, int) else mixed
    weights = quantized(toy, bits)
    exported = export_traced(network, weights, tmp_path / "toy", to="openvino", language="it")
    on_disk = {file.name: file.stat().st_size for file in exported.folder.iterdir()}
    assert on_disk == exported.files
    assert on_disk.keys() > GRAPHS
    assert sum(on_disk.values()) == toy.sizes.total(bits)
    constants = sum(size for name, size in on_disk.items() if name.endswith(".bin"))
    packed = sum(weight.nbytes for weight in weights)  # the table of tokens lies there once
    floats = sum(value.nbytes for value in toy.leftovers.values())
    assert packed < constants < packed + floats + 4096

    (batch, _), *_ = model.batches(CLIPS, "it")
    features = batch.inputs["input_features"]
    ids = [[257, 260, 262, 5, 9, 77], [257, 259, 262, 1, 2, 3], [257, 258, 9, 9, 9, 9]]
    switch = installed(model, weights, toy.leftovers)
    with torch.inference_mode():
        encoded = model.module.model.encoder(features).last_hidden_state
        expected = model.module(
            encoder_outputs=(encoded,), decoder_input_ids=torch.tensor(ids)
        ).logits.numpy()
    truth = transcribe_clips(model, CLIPS, "it")
    switch.restore()
    for empty in ("no clips", "zeros"):
        states, logits = computed(exported.folder, features.numpy(), np.array(ids), empty)
        assert np.allclose(states, encoded.numpy(), atol=1e-3)
        assert np.allclose(logits, expected, atol=1e-3)
    transcribe = opened(exported.folder)
    assert [transcribe(clip) for clip in CLIPS] == truth
    assert all(truth)


@pytest.mark.parametrize("bits", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_tables_and_matrices_stay_packed_in_memory(traced, bits):
    """No weight of a layer is kept as a float, the table of tokens neither."""
    model, network = traced
    toy = ready(model, WeightFormat("per_channel", False))
    filled = fill(network.graphs[DECODER], quantized(toy, [bits] * len(toy.layers)))
    settings = SETTINGS["float"] | {"INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(filled, "CPU", settings)
    floats = 0
    for node in compiled.get_runtime_model().get_ordered_ops():
        shape = node.get_output_partial_shape(0)
        is_float = node.get_output_element_type(0) == openvino.Type.f32
        if node.get_rt_info()["layerType"].value == "Const" and is_float and shape.is_static:
            floats = max(floats, int(np.prod(node.get_output_shape(0))))
    assert 0 < floats < min(np.prod(layer.shape) for layer in toy.layers)


@pytest.mark.slow
def test_a_plan_leaves_no_trace_in_the_next(traced, tmp_path):
    model, network = traced
    toy = ready(model, WeightFormat("group_32", True))
    first, second = ([depth] * len(toy.layers) for depth in (3, 8))
    folders = [
        export_traced(network, quantized(toy, bits), tmp_path / name, to="openvino").folder
        for name, bits in (("a", first), ("b", second), ("c", first))
    ]
    for file in folders[0].iterdir():
        assert file.read_bytes() == (folders[2] / file.name).read_bytes()
    assert network.sizes([layer.shape for layer in toy.layers], toy.weight_format).total(
        second
    ) == sum(file.stat().st_size for file in folders[1].iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("bits", DEPTHS)
def test_a_table_that_is_looked_up_only(tmp_path, bits):
    """The output head has a weight of its own."""
    toys.save(toys.whisper(tie_word_embeddings=False), tmp_path / "model")
    model = load_model(tmp_path / "model")
    toy = ready(model, WeightFormat("group_32", True))
    names = [layer.name for layer in toy.layers]
    assert {"proj_out", "model.decoder.embed_tokens"} <= {*names}
    plan = [bits] * len(names)
    weights = quantized(toy, plan)
    network = trace(model, toy.leftovers)
    exported = export_traced(network, weights, tmp_path / "toy", to="openvino", language="it")
    assert exported.nbytes == toy.sizes.total(plan)
    switch = installed(model, weights, toy.leftovers)
    truth = transcribe_clips(model, CLIPS, "it")
    switch.restore()
    transcribe = opened(exported.folder)
    assert [transcribe(clip) for clip in CLIPS] == truth


def test_a_disk_that_is_full(traced, tmp_path):
    """Nothing is left of a file that cannot be written whole."""
    model, network = traced
    toy = ready(model, WeightFormat("group_32", True))
    weights = quantized(toy, [4] * len(toy.layers))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, limits[1]))
    try:
        with pytest.raises(FedsimError, match=r"toy cannot be written \(.*\): free space"):
            export_traced(network, weights, tmp_path / "toy", to="openvino")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_default_precision_is_that_of_the_processor(traced, tmp_path):
    """bfloat16 or dynamic quantization; nothing is off by more than they round."""
    model, network = traced
    toy = ready(model, WeightFormat("group_32", True))
    weights = quantized(toy, [6] * len(toy.layers))
    folder = export_traced(network, weights, tmp_path / "toy", to="openvino").folder
    (batch, _), *_ = model.batches(CLIPS, "it")
    feeds = {"input_features": batch.inputs["input_features"].numpy()}
    (exact,), (found,) = (session(folder, ENCODER, how).run(None, feeds) for how in SETTINGS)
    assert np.abs(found - exact).max() < 0.05 * np.abs(exact).max()


def test_a_part_of_a_vocabulary(tmp_path):
    text = tmp_path / "words.txt"
    text.write_text("Casa, casa; cane!\nCasa gatto cane casa\n", encoding="utf-8")
    how = {"language": "it", "vocabulary": 2, "own_tokens": 3, "words_from": str(text), **QUICK}
    model = load_model(vocabulary_toys.save(tmp_path / "model"))
    mine = fedsim.personalize(model, CLIPS, budget_mb=0.075, bit_depths=DEPTHS, **how)
    exported = mine.export(tmp_path / "toy", to="openvino")
    leftovers = load_leftovers(mine.file.leftovers)
    switch = installed(model, mine.file.weights, leftovers, mine.file.rows)
    truth = transcribe_clips(model, CLIPS, "it")
    switch.restore()
    transcribe = opened(exported.folder)
    assert [transcribe(clip) for clip in CLIPS] == truth
    assert all(truth)


@pytest.mark.slow
def test_a_shorter_window_cuts_what_loaders_fill_up(model_folder, tmp_path):
    model = load_model(model_folder("whisper"), window_s=1.5)
    mine = fedsim.personalize(model, CLIPS, budget_mb=0.1, bit_depths=(3,), language="it", **QUICK)
    exported = mine.export(tmp_path / "toy", to="openvino")
    encoder = session(exported.folder, ENCODER)
    features = np.random.default_rng(0).normal(size=(1, 80, 3000)).astype(np.float32)
    (states,) = encoder.run(None, {"input_features": features})
    (same,) = encoder.run(None, {"input_features": features[:, :, :150]})
    assert states.shape == (1, 75, 32)
    assert np.array_equal(states, same)


@pytest.mark.parametrize(
    "name", ["whisper", pytest.param("whisper-english", marks=pytest.mark.slow)]
)
def test_a_budget_for_the_files_holds(model_folder, name, tmp_path):
    """Whoever speaks: here it is detected, or there is none to detect."""
    model = load_model(model_folder(name))
    toy = ready(model, WeightFormat("group_32", True))
    how = {"allocation": "uniform", "rounding": "nearest", "weights": "group_32"}
    exact = toy.sizes.total([3] * len(toy.layers))

    def personalized(budget, **more):
        return fedsim.personalize(
            model, CLIPS, budget_mb=budget / 2**20, format="openvino", **how, **more
        )

    mine = personalized(exact)
    assert {*mine.bits.values()} == {3}
    assert {*personalized(exact - 1).bits.values()} == {2}
    exported = mine.export(tmp_path / "toy", to="openvino")
    assert exported.nbytes == exact
    assert "language" not in json.loads((exported.folder / "generation_config.json").read_text())
    leftovers = load_leftovers(mine.file.leftovers)
    switch = installed(model, mine.file.weights, leftovers)
    truth = transcribe_clips(model, CLIPS)
    switch.restore()
    transcribe = opened(exported.folder)
    assert [transcribe(clip) for clip in CLIPS] == truth


@pytest.mark.slow
def test_the_check_hears_the_same(model_folder, tmp_path):
    model = load_model(model_folder("whisper"))
    mine = fedsim.personalize(
        model, CLIPS, budget_mb=0.1, bit_depths=DEPTHS, language="it", **QUICK
    )
    exported = mine.export(tmp_path / "toy", to="openvino")
    leftovers = load_leftovers(mine.file.leftovers)
    checked = check(mine.model, mine.file.weights, leftovers, exported, CLIPS, language="it")
    assert [ran.setting for ran in checked.ran] == ["float", "default"]
    assert checked.equal(checked.ran[0]) == len(CLIPS)
    assert all(checked.emulated)
    assert all(0 < ran.loaded_bytes <= ran.work_bytes for ran in checked.ran)


def test_another_activation_is_refused(tmp_path):
    toys.save(toys.whisper(activation_function="relu"), tmp_path / "model")
    model = load_model(tmp_path / "model")
    mine = fedsim.personalize(model, CLIPS, budget_mb=0.1, bit_depths=(4,), language="it", **QUICK)
    with pytest.raises(FedsimError, match="its activation is 'relu', and only gelu"):
        mine.export(tmp_path / "toy", to="openvino")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
