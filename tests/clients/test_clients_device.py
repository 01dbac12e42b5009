"""A device alone: what it answers, that it does so from its own clips, what it keeps to itself."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
from fedsim_clients.device import Device
from fedsim_clients.saving import model_name

from fedsim import load_personalized
from fedsim.base.seeds import client_rng
from fedsim.errors import FedsimError
from fedsim.protocol import messages as m
from fedsim.quant import modelfile
from fedsim.quant.observe import observe
from fedsim.quant.sensitivity import sense
from fedsim.speech.clips import read_utterance
from fedsim.speech.models.base import public_signal, transcribe_clips, tuning_batches
from fedsim.speech.normalizers import normalizer
from fedsim.speech.scoring import count_errors, interval


def clips_of(utterances):
    return [read_utterance(u) for u in utterances]


class Take:
    """A clip that notes when it is read."""

    def __init__(self, utterance, read):
        self.utterance, self.read = utterance, read

    def render(self):
        self.read.append(self.utterance)
        return read_utterance(self.utterance)


@pytest.fixture
def heard(device):
    """The device with clips that note when they are read, and the list of these."""
    read = []
    tuning, test = (
        tuple(replace(u, source=Take(u, read)) for u in clips)
        for clips in (device.data.tuning, device.data.test)
    )
    return Device(device.runtime, replace(device.data, tuning=tuning, test=test)), read


def test_sensing(device, runtime):
    summary = device.sense(m.SenseRequest("median"))
    model = runtime.model
    expected = sense(model, tuning_batches(model, clips_of(device.data.tuning), None))
    assert summary.sensitivity == tuple(expected.tolist())
    assert summary.client == "ann"
    assert summary.budget_bytes == int(0.0334 * 2**20)
    assert summary.bit_depths == tuple(range(2, 17))
    assert summary.clips == 3


def test_facts_alone_read_no_audio(heard):
    device, read = heard
    assert device.sense(m.SenseRequest("")).sensitivity == ()
    assert read == []


def test_test_clips_are_read_for_testing_only(device, heard, planner):
    """Nor is a label: those of tuning clips are gone, those of test clips are for counting."""
    device, read = heard
    candidates = planner.own(device.sense(m.SenseRequest("median")))
    device.personalize(m.Delivery(False, candidates))
    assert len(read) == len(device.data.tuning)  # each once
    assert {u.key for u in read} == {u.key for u in device.data.tuning}
    assert {u.text for u in read} == {None}
    read.clear()
    device.evaluate(m.Evaluation(True, ()))
    assert {u.key for u in read} == {u.key for u in device.data.test}


def test_an_unknown_measure(device):
    with pytest.raises(FedsimError, match=r"'meadian'.* did you mean"):
        device.sense(m.SenseRequest("meadian"))


def test_personalizing(device, runtime, candidates, tmp_path):
    receipt = device.personalize(m.Delivery(False, candidates))
    assert receipt.client == "ann"
    assert receipt.file_bytes == tuple(runtime.study.sizes.total(c.bits) for c in candidates)
    assert max(receipt.file_bytes) <= runtime.devices["ann"].budget_bytes
    assert receipt.ranges == ()
    assert os.listdir(tmp_path / "run") == ["bank"]  # the files were weighed, and are gone


def test_personalizing_leaves_nothing_behind(device, candidates, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    device.personalize(m.Delivery(False, candidates))
    assert list(scratch.iterdir()) == []


def test_ranges_are_returned_on_request_alone(device, runtime, candidates):
    receipt = device.personalize(m.Delivery(True, candidates))
    layers = len(runtime.model.layers)
    assert len(receipt.ranges) == 2 * layers * len(candidates)
    table = np.array(receipt.ranges).reshape(len(candidates), layers, 2)
    assert (table[..., 0] <= 0).all()
    assert (table[..., 1] >= 0).all()
    by_name = dict(zip([c.name for c in candidates], table, strict=True))
    model = runtime.model
    seen = observe(model, tuning_batches(model, clips_of(device.data.tuning), None), rows=False)
    public = observe(model, tuning_batches(model, public_signal(), None), rows=False)
    for found, source in ((by_name["myqasr/minmax"], seen), (by_name["myqasr/none"], public)):
        for row, layer in zip(found, model.layers, strict=True):
            low, high = source[layer.name].low, source[layer.name].high
            np.testing.assert_allclose(row, (min(low, 0), max(high, 0)), rtol=1e-6)
    within = by_name["myqasr/cosine"] / by_name["myqasr/minmax"]
    assert (np.nan_to_num(within, nan=1.0) <= 1 + 1e-6).all()


def test_layers_that_look_rows_up_have_no_range(tmp_path, open_study, plan_for):
    """NaN stands for none, in messages and in the file."""
    folder = toys.save(toys.whisper(tie_word_embeddings=False), tmp_path / "untied")
    overrides = [f"model.id={folder}", "clients.budget_mb=0.2", "save_models=true"]
    with open_study(*overrides) as runtime:
        names = [layer.name for layer in runtime.model.layers]
        (table,) = [layer.name for layer in runtime.model.layers if layer.kind == "embedding"]
        device = Device(runtime, runtime.clients["ann"])
        summary = device.sense(m.SenseRequest("median"))
        candidates = plan_for(runtime).own(summary)[:3]
        receipt = device.personalize(m.Delivery(True, candidates))
        nan = np.isnan(receipt.ranges).reshape(3, len(names), 2)
        where = names.index(table)
        assert nan[:, where].all()
        assert nan.sum() == 6
        own = device.evaluate(m.Evaluation(False, candidates))
        width = 2 * len(names)
        given = tuple(
            replace(c, ranges=receipt.ranges[width * i : width * (i + 1)])
            for i, c in enumerate(candidates)
        )
        assert device.evaluate(m.Evaluation(False, given)) == own
        path = tmp_path / "run" / "models" / model_name("ann", candidates[0].name)
        assert modelfile.read(path, runtime.model.layers).inputs[where].range is None
        assert load_personalized(path).inputs[table].range is None


def test_evaluating(device, runtime, candidates):
    """The same counts as by hand; full precision first, then one of each in the order asked."""
    scores = device.evaluate(m.Evaluation(True, candidates))
    clips = clips_of(device.data.test)
    references = [u.text for u in device.data.test]
    counted = count_errors(references, transcribe_clips(runtime.model, clips))
    assert (scores.client, scores.clips) == ("ann", 3)
    assert (scores.errors[0], scores.words[0]) == (counted.errors, counted.words)
    assert (scores.char_errors[0], scores.chars[0]) == (counted.char_errors, counted.chars)
    assert scores.correct == ()
    assert (scores.looped, scores.looped_errors, scores.looped_words) == ((), (), ())
    sizes = tuple(runtime.study.sizes.total(c.bits) for c in candidates)
    assert scores.file_bytes == (runtime.study.switch.full_bytes(), *sizes)
    for name in ("errors", "words", "char_errors", "chars", "low", "high"):
        assert len(getattr(scores, name)) == 1 + len(candidates)
    backwards = device.evaluate(m.Evaluation(False, candidates[::-1]))
    assert backwards.errors == scores.errors[:0:-1]
    assert backwards.char_errors == scores.char_errors[:0:-1]
    assert device.evaluate(m.Evaluation(False, ())).errors == ()


def test_counts_of_characters(device, runtime):
    """The interval and the counts of each clip are of what is requested; the sums are both."""
    scores = device.evaluate(m.Evaluation(True, (), clip_counts=True, metric="cer"))
    words = device.evaluate(m.Evaluation(True, (), clip_counts=True))
    heard = transcribe_clips(runtime.model, clips_of(device.data.test))
    counts = [count_errors([u.text], [h]) for u, h in zip(device.data.test, heard, strict=True)]
    assert scores.clip_wrong == tuple(c.char_errors for c in counts)
    assert scores.clip_of == tuple(c.chars for c in counts)
    rng = client_rng(runtime.scenario.seed, "ann", "interval")
    assert (scores.low[0], scores.high[0]) == interval(counts, rng, "cer")
    assert words.clip_of == tuple(c.words for c in counts)
    for name in ("errors", "words", "char_errors", "chars"):
        assert getattr(scores, name) == getattr(words, name)


def test_texts_are_normalized_as_requested(device, runtime):
    """By a device that is asked to: references of the toys have no capitals."""
    heard = transcribe_clips(runtime.model, clips_of(device.data.test))
    texts = [u.text.upper() for u in device.data.test]
    shouted = tuple(replace(u, text=t) for u, t in zip(device.data.test, texts, strict=True))
    loud = Device(runtime, replace(device.data, test=shouted))
    plain = loud.evaluate(m.Evaluation(True, (), text_normalizer="none"))
    assert plain.errors[0] == count_errors(texts, heard, normalizer("none")).errors
    assert plain.errors[0] == plain.words[0] > loud.evaluate(m.Evaluation(True, ())).errors[0]


def test_a_model_that_repeats_itself(open_study, model_folder):
    """Every clip loops if only one word is left to say; the counts are those of that word."""
    with open_study(f"model.id={model_folder('whisper')}", "clients.budget_mb=0.2") as runtime:
        model, device = runtime.model, Device(runtime, runtime.clients["ann"])
        rules = model.module.generation_config
        plain = device.evaluate(m.Evaluation(True, ()))
        known = rules.suppress_tokens
        (word,) = model.tokenizer.convert_tokens_to_ids(["a"])
        rules.suppress_tokens = [i for i in range(model.module.config.vocab_size) if i != word]
        try:
            scores = device.evaluate(m.Evaluation(True, ()))
        finally:
            rules.suppress_tokens = known
    texts = [u.text for u in device.data.test]
    counted = count_errors(texts, ["a"] * len(texts))
    assert scores.errors == scores.looped_errors == (counted.errors,)
    assert scores.words == scores.looped_words == (counted.words,)
    assert scores.looped == (3,)
    assert plain.looped[0] < 3
    assert plain.looped_words[0] < plain.words[0]


def test_intervals_hold_the_rate_and_are_paired(device, candidates):
    scores = device.evaluate(m.Evaluation(True, candidates))
    for low, high, errors, words in zip(
        scores.low, scores.high, scores.errors, scores.words, strict=True
    ):
        assert low <= errors / words <= high
    again = device.evaluate(m.Evaluation(False, candidates[:1]))
    assert (again.low[0], again.high[0]) == (scores.low[1], scores.high[1])


def test_equal_models_are_tested_once(device, candidates, passes):
    one = candidates[0]
    twins = (one, replace(one, name="again"), replace(one, tuned_on="bob"))
    device.evaluate(m.Evaluation(True, (one,)))  # calibrated from here on
    with passes(device.runtime.model) as single:
        device.evaluate(m.Evaluation(True, (one,)))
    with passes(device.runtime.model) as several:
        scores = device.evaluate(m.Evaluation(True, twins))
    assert len(several) == len(single) > 0
    assert scores.errors[1] == scores.errors[2] == scores.errors[3]


def test_a_model_with_given_ranges(device, runtime, candidates):
    """Ranges that came with a model are used as they are: those of its own are no change."""
    index = [c.name for c in candidates].index("myqasr/cosine")
    one = candidates[index]
    width = 2 * len(runtime.model.layers)
    receipt = device.personalize(m.Delivery(True, (one,)))
    own = device.evaluate(m.Evaluation(False, (one,)))
    given = device.evaluate(m.Evaluation(False, (replace(one, ranges=receipt.ranges),)))
    assert given == own
    narrow = tuple(x / 50 for x in receipt.ranges)
    other = device.evaluate(m.Evaluation(False, (replace(one, ranges=narrow),)))
    assert other.char_errors != own.char_errors
    for ranges in ((0.0,), (0.0,) * (width - 1), (0.0,) * (width + 2)):
        remedy = rf"client 'ann': .* {len(ranges)} range ends for 19 layers; run the same version"
        with pytest.raises(FedsimError, match=remedy):
            device.evaluate(m.Evaluation(False, (replace(one, ranges=ranges),)))


def test_full_precision_is_in_place_between_messages(device, runtime, candidates):
    module = runtime.model.module
    before = {k: t.clone() for k, t in module.state_dict().items()}

    def unchanged():
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, before[key])
        assert not any(x._forward_pre_hooks or x._forward_hooks for x in module.modules())

    first = device.evaluate(m.Evaluation(True, candidates))
    unchanged()
    device.personalize(m.Delivery(False, candidates))
    unchanged()
    calls = []

    def failing(*_):
        calls.append(1)
        if len(calls) > 1:  # full precision first, then a candidate
            raise MemoryError

    handle = module.register_forward_hook(failing)
    with pytest.raises(MemoryError):
        device.evaluate(m.Evaluation(True, candidates))
    handle.remove()
    unchanged()
    assert device.evaluate(m.Evaluation(True, candidates)) == first


def test_a_model_over_its_budget_is_not_passed_on(device, runtime, planner):
    rich = replace(device.sense(m.SenseRequest("median")), budget_bytes=10**6)
    (first, *_) = planner.own(rich)
    with pytest.raises(FedsimError, match=r"'ann': the file of uniform/none takes .* give both"):
        device.personalize(m.Delivery(False, (first,)))


def test_a_blob_that_is_missing_or_damaged(device, runtime, candidates):
    store = runtime.weights.store
    name = candidates[0].blobs[:32].hex()
    path = store.folder / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(FedsimError, match=f"{name[:12]} .*damaged.* delete the file"):
        device.evaluate(m.Evaluation(False, candidates[:1]))
    path.unlink()
    with pytest.raises(FedsimError, match=f"{name[:12]} .*No such file"):
        device.personalize(m.Delivery(False, candidates[:1]))


def test_models_are_saved_where_the_scenario_says(open_study, plan_for, tmp_path):
    with open_study("save_models=true") as runtime:
        device = Device(runtime, runtime.clients["bob"])
        candidates = plan_for(runtime).own(device.sense(m.SenseRequest("median")))
        receipt = device.personalize(m.Delivery(False, candidates))
    files = sorted(os.listdir(tmp_path / "run" / "models"))
    assert files == sorted(model_name("bob", c.name) for c in candidates)
    for candidate, size in zip(candidates, receipt.file_bytes, strict=True):
        path = tmp_path / "run" / "models" / model_name("bob", candidate.name)
        assert os.path.getsize(path) == size
        assert modelfile.read(path, runtime.model.layers).manifest.bits == candidate.bits


def test_file_names():
    assert model_name("ann", "uniform") == "ann-uniform.safetensors"
    long = {model_name(key * 200, "uniform") for key in ("\u65e5", "\u672c", "x", "y")}
    assert len(long) == 4
    assert all(len(name.encode()) <= 220 for name in long)
    pairs = [
        ("../ann", "x/y"),
        ("..-ann", "x/y"),
        ("../ann", "x_y"),
        ("ann", "a/b"),
        ("ann", "a_b"),
    ]
    names = [model_name(*pair) for pair in pairs]
    assert len(set(names)) == len(names)
    for name in names:
        assert "/" not in name
        assert not name.startswith(".") or name.strip(".-") != ""


def test_an_interval_is_the_devices_own(device, runtime):
    """Counts of single clips stay on the device: what leaves is the interval of all of them."""
    scores = device.evaluate(m.Evaluation(True, ()))
    clips = clips_of(device.data.test)
    heard = transcribe_clips(runtime.model, clips)
    counts = [count_errors([u.text], [h]) for u, h in zip(device.data.test, heard, strict=True)]
    rng = client_rng(runtime.scenario.seed, "ann", "interval")
    assert (scores.low[0], scores.high[0]) == interval(counts, rng)
