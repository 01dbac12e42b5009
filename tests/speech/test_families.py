"""Every family: its transcripts are transformers' own, and all of its layers are seen."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toys
import transformers
from family_toys import TOYS

from fedsim import load_model, load_personalized, personalize
from fedsim.quant.activations import FLOAT, InputFormat, make_range
from fedsim.quant.model import frame_axis
from fedsim.quant.moments import second_moments
from fedsim.quant.observe import observe
from fedsim.quant.sensitivity import sense
from fedsim.quant.switch import switch_of
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario
from fedsim.speech.families import FAMILIES
from fedsim.speech.models.base import (
    own_tokens,
    recognize_clips,
    transcribe_clips,
    tuning_batches,
)

CLIPS = toys.clips([0.31, 0.5, 0.5, 0.1, 0.77, 0.5004, 0.2])
FEW = CLIPS[:4]
ALL = sorted(TOYS)
ONE_EACH = [name for name in ALL if "ForSequenceClassification/" not in name]
"""Without the variants of classifiers, which differ from others in the encoder alone."""
DEEP = [
    pytest.param(name, marks=pytest.mark.slow)
    if name.endswith("ForSequenceClassification")
    and not name.startswith("Wav2Vec2")
    and f"{name.partition('For')[0]}ForCTC" in ALL
    else name
    for name in ONE_EACH
]
"""A classifier whose encoder is tested below letters too is slow, but for those of wav2vec 2.0."""


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """Name of a toy -> its folder, the model that fedsim loads and the one of transformers."""
    home = tmp_path_factory.mktemp("families")

    def make(name):
        toy = TOYS[name]
        folder = toy.save(home / name.replace("/", "-").replace(" ", "-"))
        return SimpleNamespace(
            model=load_model(folder, batch_size=4),
            own=getattr(transformers, toy.class_name).from_pretrained(folder).eval(),
            extractor=transformers.AutoFeatureExtractor.from_pretrained(folder),
        )

    torch.set_num_threads(1)
    return cache(make)


def test_no_class_is_forgotten():
    served = {name for family in FAMILIES for name in FAMILIES[family].classes}
    tested = {toy.class_name for toy in TOYS.values()} | {"WhisperForConditionalGeneration"}
    assert served == tested


def own_answer(made, clip):
    """What transformers makes of one clip: logits and text, class or tokens, decoded its way."""
    own, tokenizer = made.own, getattr(made.model, "tokenizer", None)
    inputs = made.extractor([clip], sampling_rate=toys.RATE, return_tensors="pt")
    if own.config.is_encoder_decoder and hasattr(own, "generate"):
        return None, own.generate(**inputs, do_sample=False, max_new_tokens=50)[0].tolist()
    with torch.no_grad():
        logits = own(**inputs).logits[0]
        if logits.ndim == 1:
            return logits, own.config.id2label[int(logits.argmax())]
        if hasattr(own, "generate"):
            return logits, tokenizer.decode(own.generate(**inputs)[0])
    return logits, tokenizer.decode(logits.argmax(-1))


ENCODERS = [name for name in ALL if "ForConditionalGeneration" not in name]
DECODERS = sorted(set(ALL) - set(ENCODERS))


@pytest.mark.parametrize("name", ENCODERS)
def test_transcripts_are_those_of_transformers_clip_by_clip(family, name):
    made = family(name)
    expected = [own_answer(made, clip) for clip in CLIPS]
    together = transcribe_clips(made.model, CLIPS)
    assert together == [text.strip() for _, text in expected]
    assert len(set(together)) > (1 if made.model.task == "classify" else 5)
    for batch, places in made.model.batches(CLIPS):
        with torch.no_grad():
            logits = made.model.forward(batch)
        for place, row in zip(places, logits, strict=True):
            alone = expected[place][0]
            if row.ndim == 2:
                n = min(len(row), len(alone), *batch.frames_out.get("ctc_head", [9999]))
                row, alone = row[:n], alone[:n]
                assert n
            torch.testing.assert_close(row, alone, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", DECODERS)
def test_tokens_are_those_of_transformers_clip_by_clip(family, name):
    """Up to where a hypothesis is cut because it repeats itself, or is too long."""
    made, ended = family(name), 0
    model, own = made.model, made.own
    tokens = own_tokens(model, CLIPS)
    heard = recognize_clips(model, CLIPS)
    for clip, row, hypothesis in zip(CLIPS, tokens, heard, strict=True):
        expected = own_answer(made, clip)[1]
        assert row.tolist() == expected[: len(row)]
        assert hypothesis.text == model.tokenizer.decode(row, skip_special_tokens=True).strip()
        ended += row.tolist() == expected
        assert hypothesis.looped or len(row) in (len(expected), 2 + 8 + 13 * len(clip) // 16_000)
    assert ended > 3
    assert len({h.text for h in heard}) > 5
    tokens = dict(enumerate(tokens))
    for batch, places in model.batches(CLIPS):
        ready = model.with_tokens(batch, [tokens[i] for i in places])
        with torch.no_grad():
            logits = model.forward(ready)
            for place, row in zip(places, logits, strict=True):
                inputs = {"input_values": torch.from_numpy(CLIPS[place])[None]}
                ids = tokens[place][None, :-1]
                alone = own(**inputs, decoder_input_ids=ids).logits[0]
                torch.testing.assert_close(row[: len(alone)], alone, atol=2e-4, rtol=1e-3)


RELATIVE = ("linear_pos", "relative_k_proj")
"""Layers that receive positions, once a batch; those of SEW-D receive frames beside."""


def by_clip(model):
    """The layers that receive nothing but frames of the clips."""
    positions = RELATIVE
    if model.module.config.model_type == "sew-d":
        positions = ("query_proj", "key_proj")
    layers = [layer for layer in model.layers if layer.kind != "embedding"]
    return [layer for layer in layers if not layer.name.endswith(positions)]


@pytest.mark.parametrize("name", DEEP)
def test_every_layer_is_seen_of_the_speech_alone(family, name):
    """Sensing, calibration and moments of padded batches are those of the clips one by one."""
    model = family(name).model
    values = sense(model, batches(model, FEW), "median")
    assert np.isfinite(values).all()
    assert (values > 0).all()
    inputs = {layer.name for layer in model.layers if layer.kind != "embedding"}
    together = observe(model, batches(model, FEW), capacity=100_000, fisher=True)
    assert all(float(one.fisher.sum()) > 0 for one in together.values())
    moments = second_moments(model, batches(model, FEW))
    assert together.keys() == moments.keys() == inputs
    alone = [observe(model, batches(model, [clip]), capacity=100_000) for clip in FEW]
    apart = [second_moments(model, batches(model, [clip])) for clip in FEW]
    for layer in by_clip(model):
        seen = [one[layer.name] for one in alone]
        rows = together[layer.name].rows
        low, high = min(one.low for one in seen), max(one.high for one in seen)
        assert together[layer.name].low == pytest.approx(low, rel=1e-3, abs=1e-4), layer
        assert together[layer.name].high == pytest.approx(high, rel=1e-3, abs=1e-4), layer
        assert len(rows) == sum(len(one.rows) for one in seen), layer
        total = sum(float(one.rows.double().square().sum()) for one in seen)
        assert float(rows.double().square().sum()) == pytest.approx(total, rel=1e-3), layer
        count = sum(one[layer.name].rows for one in apart)
        assert moments[layer.name].rows == count, layer
        mean = sum(one[layer.name].mean * one[layer.name].rows for one in apart) / count
        np.testing.assert_allclose(moments[layer.name].mean, mean, atol=1e-3, rtol=1e-3)


def batches(model, clips):
    return tuning_batches(model, clips, own_tokens(model, clips))


@pytest.mark.parametrize("name", DEEP)
def test_what_is_seen_is_what_the_layers_multiply(family, name):
    """The rows of a layer, multiplied by its weight, are its outputs: also of a layer that the
    network calls with several inputs."""
    model = family(name).model
    ready = list(batches(model, CLIPS[:3]))
    found = second_moments(model, ready)
    # Positional convolutions also have a frame that is cut off.
    called = [a for a in model.layers if a.kind != "embedding" and "pos_conv" not in a.name]
    sums = {layer.name: 0.0 for layer in called}
    modules = dict(model.module.named_modules())

    def add(layer):
        def hook(module, args, out):
            counts = batch.frames_out.get(layer.name)
            if frame_axis(layer.kind) == 2:
                out = out.transpose(1, 2)
            rows = [o if counts is None else o[: counts[i]] for i, o in enumerate(out)]
            bias = 0.0 if module.bias is None else module.bias
            sums[layer.name] += float(sum((row - bias).double().square().sum() for row in rows))

        return hook

    handles = [modules[a.name].register_forward_hook(add(a)) for a in called]
    try:
        with torch.no_grad():
            for batch in ready:
                model.forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    for layer in called:
        moments, weight = found[layer.name], modules[layer.name].weight
        groups = len(moments.mean)
        w = weight.reshape(groups, layer.shape[0] // groups, -1).double().numpy()
        energy = np.einsum("gnk,gkl,gnl->", w, moments.mean, w) * moments.rows
        assert energy == pytest.approx(sums[layer.name], rel=1e-3), layer


@pytest.mark.parametrize("name", DEEP)
def test_every_layer_computes_with_what_is_installed(family, name):
    """Another weight, or an input of fewer bits, changes the logits: no layer is gone round."""
    model = family(name).model
    switch = switch_of(model)
    full, rest = switch.full_weights(), switch.full_leftovers()
    clips = CLIPS[:1]
    ranges = {
        k: make_range(v.low, v.high) for k, v in observe(model, batches(model, clips)).items()
    }
    batch = next(iter(batches(model, clips)))

    def logits(weights, inputs):
        switch.install(weights, rest, inputs)
        try:
            with torch.no_grad():
                return model.forward(batch)
        finally:
            switch.restore()

    plain = logits(full, {layer.name: FLOAT for layer in model.layers})
    for layer in model.layers:
        changed = logits(full | {layer.name: 0.5 * full[layer.name]}, {})
        assert not torch.equal(changed, plain), layer
        if layer.name in ranges:
            changed = logits(full, {layer.name: InputFormat(4, ranges[layer.name])})
            assert not torch.equal(changed, plain), layer


@pytest.mark.parametrize("name", DEEP)
def test_a_personalized_model_is_the_same_from_its_file(family, name, tmp_path):
    model = family(name).model
    full = switch_of(model).full_bytes()
    made = personalize(
        model,
        CLIPS,
        budget_mb=0.45 * full / 2**20,
        allocation="myqasr",
        moments="own",
        weights="per_channel",
        calibration="minmax",
    )
    path = tmp_path / "user.safetensors"
    assert made.save(path) == path.stat().st_size == made.nbytes
    assert made.nbytes <= 0.45 * full
    again = load_personalized(path)  # loads the full-precision model from its folder
    assert again.bits == made.bits
    assert again.transcribe(CLIPS) == made.transcribe(CLIPS)
    assert len(set(made.transcribe(CLIPS))) > 1


@pytest.mark.parametrize("name", ["WavLMForCTC/layer norms", "MoonshineForConditionalGeneration"])
def test_a_study(family, tmp_path, name):
    """A run, scored against the model's own transcripts and a word more: one error per clip."""
    model = family(name).model
    corpus = toys.write_corpus(
        tmp_path / "clips",
        speakers=("ann", "bob"),
        read=lambda clips, language: [f"{text} more" for text in transcribe_clips(model, clips)],
    )
    file = toys.write_scenario(
        tmp_path / "toy.yaml",
        model={"id": model.id, "batch_size": 4},
        corpus={"path": str(corpus), "group_by": "speaker", "tuning_clips": 3, "test_clips": 3},
        clients={"budget_mb": 0.4 * switch_of(model).full_bytes() / 2**20},
        methods=["fp32", {"allocation": "myqasr", "calibration": ["cosine", "hessian"]}],
    )
    result = run_scenario(load_scenario(file), tmp_path / "run")
    assert not result.failures
    assert {row.client for row in result.rows} == {"ann", "bob"}
    assert len(result.rows) == 2 * 3
    assert all(row.errors == 3 for row in result.rows if row.method == "fp32")
    assert all(row.errors >= 3 for row in result.rows)
    assert any(row.errors > 3 for row in result.rows)
