"""Whisper in ONNX: one decoder graph with and without a past, for several loaders."""

from __future__ import annotations

import collections
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import toys
import vocabulary_toys

import fedsim
from fedsim.errors import FedsimError
from fedsim.export import FORMATS, export, run_whisper
from fedsim.export.check import check
from fedsim.export.whisper import DECODER, ENCODER
from fedsim.quant.modelfile import load_leftovers
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import dequantize_weight
from fedsim.speech.models import load_model, whisper

CLIPS = toys.clips((0.5, 0.8, 0.63), seed=3)
DEPTHS = (2, 4, 6, 8)
QUICK = {"allocation": "shuffled", "rounding": "nearest", "calibration": "float"}


@pytest.fixture(scope="module")
def made(model_folder, tmp_path_factory):
    """A personalized Whisper with all of `DEPTHS`, and the folder of its export."""
    model = load_model(model_folder("whisper"))
    mine = fedsim.personalize(
        model, CLIPS, budget_mb=0.066, bit_depths=DEPTHS, language="it", seed=1, **QUICK
    )
    assert len(set(mine.bits.values())) > 1
    return mine, mine.export(tmp_path_factory.mktemp("whisper") / "onnx")


def installed(mine):
    """The switch of a model with the file's weights and inputs in float32."""
    switch = switch_of(mine.model)
    pairs = zip(mine.model.layers, mine.file.weights, strict=True)
    weights = {layer.name: dequantize_weight(one) for layer, one in pairs}
    switch.install(weights, load_leftovers(mine.file.leftovers), {}, rows=mine.file.rows)
    return switch


def session(exported, name, optimized=""):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = optimized
    return onnxruntime.InferenceSession(str(exported.folder / name), options)


def opened(exported):
    return run_whisper.opened(exported.folder, lambda name: session(exported, name))


@pytest.mark.parametrize("empty", ["no clips", "zeros"])
def test_the_runtime_computes_what_the_network_does(made, empty):
    """With and without the cache, in a batch: onnx-asr begins with a past of no clips, optimum with
    one of zeros."""
    mine, exported = made
    (batch, _), *_ = mine.model.batches(CLIPS, "it")
    features = batch.inputs["input_features"]
    ids = torch.tensor(
        [[257, 260, 262, 5, 9, 77], [257, 259, 262, 1, 2, 3], [257, 258, 9, 9, 9, 9]]
    )
    switch = installed(mine)
    with torch.inference_mode():
        encoded = mine.model.module.model.encoder(features).last_hidden_state
        truth = mine.model.module(encoder_outputs=(encoded,), decoder_input_ids=ids).logits.numpy()
    switch.restore()
    (states,) = session(exported, ENCODER).run(None, {"input_features": features.numpy()})
    assert np.allclose(states, encoded.numpy(), atol=1e-3)

    decoder = session(exported, DECODER)
    olds = [i for i in decoder.get_inputs() if i.name.startswith("past_key_values.")]
    clips, length = (0, 0) if empty == "no clips" else (len(CLIPS), 1)
    size = [(clips, i.shape[1], length, i.shape[3]) for i in olds]
    past = {i.name: np.full(s, 3, np.float32) for i, s in zip(olds, size, strict=True)}
    for begin, end in ((0, 3), (3, 4), (4, 6)):
        feeds = {"input_ids": ids[:, begin:end].numpy(), "encoder_hidden_states": states}
        logits, *presents = decoder.run(
            None, feeds | past | {"use_cache_branch": np.array([begin > 0])}
        )
        assert np.allclose(logits, truth[:, begin:end], atol=2e-3), np.abs(logits).max()
        for name, present in zip(past, presents, strict=True):
            if ".decoder." in name or begin == 0:
                past[name] = present
            else:  # loaders keep what they have
                assert len(present) == 0
    assert [o.name for o in decoder.get_outputs()] == [
        "logits",
        *(i.name.replace("past_key_values", "present") for i in olds),
    ]


def test_transcripts_are_those_of_generate(made):
    """Of transformers' own greedy decoding, with the weights of the file."""
    mine, exported = made
    transcribe, model = opened(exported), mine.model
    switch = installed(mine)
    for clip in CLIPS:
        features = model.extractor(clip, sampling_rate=16_000, return_tensors="pt").input_features
        bound = 8 + int(np.ceil(12 * len(clip) / 16_000))
        ids = model.module.generate(
            features, language="it", task="transcribe", max_new_tokens=bound, num_beams=1
        )
        (text,) = model.tokenizer.batch_decode(ids, skip_special_tokens=True)
        mine_text = transcribe(clip)
        # Where fedsim stops a loop, generate goes on.
        assert mine_text == text.strip() or (mine_text and text.strip().startswith(mine_text))
    switch.restore()


def test_the_check_hears_the_same(made):
    mine, exported = made
    leftovers = load_leftovers(mine.file.leftovers)
    checked = check(mine.model, mine.file.weights, leftovers, exported, CLIPS, language="it")
    assert checked.equal(checked.ran[0]) == len(CLIPS)
    assert all(checked.emulated)
    assert all(0 < ran.loaded_bytes <= ran.work_bytes for ran in checked.ran)


def test_weights_stay_packed_and_lie_once(made, tmp_path):
    mine, exported = made
    codes = 0
    for name in (ENCODER, DECODER):
        session(exported, name, str(tmp_path / name))
        kinds = collections.Counter(n.op_type for n in onnx.load(tmp_path / name).graph.node)
        assert kinds["MatMulNBits"] >= 12
        assert kinds["If"] == 0
        convolutions = 2 if name == ENCODER else 0
        assert convolutions <= kinds["DequantizeLinear"] <= 2 * convolutions
        for tensor in onnx.load(exported.folder / name).graph.initializer:
            codes += len(tensor.raw_data) if tensor.name.endswith(".codes") else 0
    packed = sum(weight.payload.nbytes for weight in mine.file.weights)
    assert packed <= codes <= 1.05 * packed + 64


def test_one_trace_serves_every_plan(made, tmp_path):
    mine, exported = made
    chosen = FORMATS["onnx"]
    traced = chosen.trace(mine.model, load_leftovers(mine.file.leftovers))
    other = fedsim.personalize(
        mine.model, CLIPS, budget_mb=0.1, bit_depths=(8,), language="en", **QUICK
    )
    for name, one, language in (("a", mine, "it"), ("b", other, "en"), ("c", mine, "it")):
        (tmp_path / name).mkdir()
        chosen.write(traced, one.file.weights, tmp_path / name, language=language)
    for name in exported.files:
        first, again = ((tmp_path / folder / name).read_bytes() for folder in "ac")
        assert first == again == (exported.folder / name).read_bytes()
    assert (tmp_path / "b" / DECODER).stat().st_size > exported.files[DECODER]


def test_features_and_limits_are_those_of_the_model(made):
    mine, _ = made
    filters = run_whisper.mel_filters(80)
    assert np.allclose(filters, mine.model.extractor.mel_filters, atol=1e-12)
    truth = mine.model.extractor(CLIPS[1], sampling_rate=16_000, return_tensors="np")
    found = run_whisper.mel_features(CLIPS[1], 100 * toys.WINDOW, filters)
    assert np.allclose(found, truth.input_features[0], atol=1e-5)
    assert run_whisper.TOKENS_PER_SECOND == whisper.TOKENS_PER_SECOND
    assert run_whisper.EXTRA_TOKENS == whisper.EXTRA_TOKENS


@pytest.mark.parametrize("name", ["whisper", "whisper-english"])
def test_a_language_that_is_not_given(model_folder, tmp_path, name):
    """It is detected, or there is none to detect."""
    model = load_model(model_folder(name))
    mine = fedsim.personalize(model, CLIPS, budget_mb=0.1, bit_depths=(4,), **QUICK)
    exported = mine.export(tmp_path / "onnx")
    switch = installed(mine)
    truth = fedsim.speech.models.base.transcribe_clips(model, CLIPS)
    switch.restore()
    transcribe = opened(exported)
    assert [transcribe(clip) for clip in CLIPS] == truth
    assert "language" not in json.loads((exported.folder / "generation_config.json").read_text())


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory):
    """A model with two words and three more tokens, and the folder of its export."""
    home = tmp_path_factory.mktemp("trimmed")
    text = home / "words.txt"
    text.write_text("Casa, casa; cane!\nCasa gatto cane casa\n", encoding="utf-8")
    mine = fedsim.personalize(
        load_model(vocabulary_toys.save(home / "model")),
        CLIPS,
        budget_mb=0.075,
        bit_depths=DEPTHS,
        language="it",
        vocabulary=2,
        own_tokens=3,
        words_from=str(text),
        **QUICK,
    )
    return mine, mine.export(home / "onnx")


def test_a_part_of_a_vocabulary(trimmed):
    mine, exported = trimmed
    transcribe = opened(exported)
    switch = installed(mine)
    truth = fedsim.speech.models.base.transcribe_clips(mine.model, CLIPS, "it")
    switch.restore()
    assert [transcribe(clip) for clip in CLIPS] == truth
    assert all(truth)


def test_files_of_a_part_of_a_vocabulary_name_the_tokens_kept(trimmed):
    from transformers import AutoTokenizer, GenerationConfig, WhisperConfig

    mine, exported = trimmed

    def read(name):
        return json.loads((exported.folder / name).read_text(encoding="utf-8"))

    tokenizer, kept = mine.model.tokenizer, np.flatnonzero(mine.file.rows.kept).tolist()
    names = {
        number: name for name, number in (read("vocab.json") | read("added_tokens.json")).items()
    }
    assert [names[i] for i in range(len(kept))] == tokenizer.convert_ids_to_tokens(kept)
    assert WhisperConfig.from_pretrained(exported.folder).vocab_size == len(kept) == len(names)
    again = AutoTokenizer.from_pretrained(exported.folder)
    assert again.get_vocab() == {name: number for number, name in names.items()}
    assert again.decode(again("Casa cane", add_special_tokens=False).input_ids) == "Casa cane"
    rules, whole = (
        GenerationConfig.from_pretrained(folder) for folder in (exported.folder, mine.model.id)
    )
    assert rules.language == "it"
    for field in ("eos_token_id", "decoder_start_token_id", "no_timestamps_token_id"):
        assert names[getattr(rules, field)] == tokenizer.convert_ids_to_tokens(
            getattr(whole, field)
        )
    for field in ("lang_to_id", "task_to_id"):
        assert {names[i] for i in getattr(rules, field).values()} == set(
            tokenizer.convert_ids_to_tokens(list(getattr(whole, field).values()))
        )
    assert names[rules.begin_suppress_tokens[-1]] == "<|endoftext|>"
    assert not read("config.json").keys() & {"suppress_tokens", "begin_suppress_tokens"}
    assert [names[i] for i in rules.suppress_tokens] == tokenizer.convert_ids_to_tokens(
        [i for i in whole.suppress_tokens if i in kept]
    )


def test_a_shorter_window_cuts_what_loaders_fill_up(model_folder, tmp_path):
    model = load_model(model_folder("whisper"), window_s=1.5)
    mine = fedsim.personalize(model, CLIPS, budget_mb=0.1, bit_depths=(4,), language="it", **QUICK)
    exported = mine.export(tmp_path / "onnx")
    encoder = session(exported, ENCODER)
    features = np.random.default_rng(0).normal(size=(1, 80, 3000)).astype(np.float32)
    (states,) = encoder.run(None, {"input_features": features})
    (same,) = encoder.run(None, {"input_features": features[:, :, :150]})
    assert states.shape == (1, 75, 32)
    assert np.array_equal(states, same)
    settings = json.loads((exported.folder / "preprocessor_config.json").read_text())
    assert settings["chunk_length"] == 2  # whole seconds: the encoder cuts the rest
    truth = mine.model.batches(CLIPS[:1], "it")
    assert next(truth)[0].inputs["input_features"].shape[2] == 150
    checked = check(
        mine.model,
        mine.file.weights,
        load_leftovers(mine.file.leftovers),
        exported,
        CLIPS,
        language="it",
    )
    assert checked.equal(checked.ran[0]) == len(CLIPS)


@pytest.mark.slow
def test_onnx_asr_loads_the_folder(model_folder, tmp_path):
    """What it hears is transformers' greedy decoding without suppressed tokens."""
    loader = pytest.importorskip("onnx_asr")
    folder = tmp_path / "model"
    toys.save(toys.whisper(max_target_positions=448), folder)  # it decodes as many at most
    model = load_model(folder)
    mine = fedsim.personalize(
        model, CLIPS, budget_mb=0.2, bit_depths=(4, 6), language="it", **QUICK
    )
    exported = mine.export(tmp_path / "onnx")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    theirs = loader.load_model("whisper", exported.folder, sess_options=options)
    switch = installed(mine)
    rules = model.module.generation_config
    rules.suppress_tokens = rules.begin_suppress_tokens = None
    for clip in CLIPS[:1]:
        features = model.extractor(clip, sampling_rate=16_000, return_tensors="pt").input_features
        ids = model.module.generate(features, language="it", task="transcribe", max_length=448)
        (text,) = model.tokenizer.batch_decode(ids, skip_special_tokens=True)
        assert theirs.recognize(clip, language="it") == text.removeprefix(" ")
    switch.restore()


def test_another_activation_is_refused(tmp_path):
    toys.save(toys.whisper(activation_function="relu"), tmp_path / "model")
    model = load_model(tmp_path / "model")
    mine = fedsim.personalize(model, CLIPS, budget_mb=0.1, bit_depths=(4,), language="it", **QUICK)
    with pytest.raises(FedsimError, match="its activation is 'relu', and only gelu"):
        mine.export(tmp_path / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_depths_are_widened_on_demand(model_folder, tmp_path):
    model = load_model(model_folder("whisper"))
    mine = fedsim.personalize(model, CLIPS, budget_mb=0.1, bit_depths=(3,), language="it", **QUICK)
    with pytest.raises(FedsimError, match="layers have 3 "):
        mine.export(tmp_path / "onnx")
    exported = mine.export(tmp_path / "onnx", widen=True)
    switch = installed(mine)
    truth = fedsim.speech.models.base.transcribe_clips(model, CLIPS, "it")
    switch.restore()
    transcribe = opened(exported)
    assert [transcribe(clip) for clip in CLIPS] == truth


def test_a_classifier_is_refused(model_folder, tmp_path):
    model = load_model(model_folder("classifier-layer"))
    mine = fedsim.personalize(model, CLIPS, budget_mb=1, bit_depths=(4,), **QUICK)
    with pytest.raises(FedsimError, match="ForSequenceClassification, and only CTC"):
        export(mine.model, mine.file.weights, {}, tmp_path / "onnx")
