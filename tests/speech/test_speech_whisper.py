"""Whisper: our greedy decoding against transformers' own, languages, the window, frames."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toys

from fedsim import load_model
from fedsim.errors import AudioError, FedsimError
from fedsim.quant.observe import observe
from fedsim.quant.sensitivity import sense
from fedsim.speech.models.base import own_tokens, recognize_clips, transcribe_clips, tuning_batches

LENGTHS = [0.31, 0.5, 1.0, 0.1, 0.5004, 2.2, 0.2, 3.0]
CLIPS = toys.clips(LENGTHS)
BOTH = ["whisper", "whisper-english"]
SPECIAL = toys.whisper_special()
PROMPT = {"whisper": 4, "whisper-english": 2}


def single(model):
    return replace(model, batch_size=1)


def bound(clip, model) -> int:
    """How many tokens a clip's hypothesis may have, its end among them: 12 a second plus 8."""
    mel = math.ceil(len(clip) / 160)
    return min(8 + math.ceil(12 * mel / 100), 80 - PROMPT[model])


@contextmanager
def rules(model, **changes):
    """Change the generation config for a while."""
    config = model.module.generation_config
    before = {name: getattr(config, name) for name in changes}
    for name, value in changes.items():
        setattr(config, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


@pytest.mark.parametrize("language", ["it", None])
@pytest.mark.parametrize("name", BOTH)
def test_batches_equal_single_clips(speech, name, language):
    model = speech(name)
    together = transcribe_clips(model, CLIPS, language)
    assert together == transcribe_clips(single(model), CLIPS, language)
    assert all(together)
    assert len(set(together)) > 4
    tokens = own_tokens(model, CLIPS, language)
    for row, same in zip(tokens, own_tokens(single(model), CLIPS, language), strict=True):
        assert row.tolist() == same.tolist()
    logits = {}
    for batch, (i,) in single(model).batches(CLIPS, language):
        logits[i] = model.forward(model.with_tokens(batch, [tokens[i]]))[0]
    for batch, places in model.batches(CLIPS, language):
        answers = model.forward(model.with_tokens(batch, [tokens[i] for i in places]))
        for i, answer in zip(places, answers, strict=True):
            used = len(tokens[i]) - 1
            torch.testing.assert_close(answer[:used], logits[i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("end", [None, "likely"])
@pytest.mark.parametrize(
    ("name", "language"),
    [
        *(("whisper", language) for language in ("it", "en", None)),
        ("whisper-english", None),
        *(
            pytest.param("whisper-english", language, marks=pytest.mark.slow)
            for language in ("it", "en")
        ),
    ],
)
def test_greedy_decoding_is_that_of_transformers(speech, name, language, end):
    """Token by token, up to the bound that we set; also where hypotheses end or loop before it."""
    model = speech(name)
    prompt = PROMPT[name]
    tokens = own_tokens(model, CLIPS, language)
    changes = {}
    if end == "likely":  # a token that turns up in the middle of some hypotheses ends them
        found = [row[prompt + 3 :].tolist() for row in tokens]
        counts = np.bincount([token for row in found for token in set(row)])
        likely = int(np.argmin(np.abs(counts - len(CLIPS) / 2)))
        changes = {"eos_token_id": likely}
    with rules(model, **changes):
        tokens = own_tokens(model, CLIPS, language)
        ended = 0
        for batch, (i,) in single(model).batches(CLIPS, language):
            options = {}
            if name == "whisper":
                options = {"language": language, "task": "transcribe"}
            with torch.no_grad():
                expected = model.module.generate(
                    batch.inputs["input_features"],
                    max_new_tokens=bound(CLIPS[i], name),
                    do_sample=False,
                    num_beams=1,
                    return_timestamps=False,
                    **options,
                )[0].tolist()
            ours = tokens[i].tolist()
            assert ours[prompt - 1] == SPECIAL["<|notimestamps|>"] if name == "whisper" else True
            spoken = ours[prompt:]
            assert 0 < len(spoken) <= bound(CLIPS[i], name)
            if changes and spoken[-1] == changes["eos_token_id"]:
                ended += 1
            # transformers may leave out the prompt and the end, and fills up behind the end
            if expected[:prompt] == ours[:prompt]:
                expected = expected[prompt:]
            stop = model.module.generation_config.eos_token_id
            if stop in expected:
                expected = expected[: expected.index(stop)]
            if spoken[-1] == stop:
                spoken = spoken[:-1]
            assert spoken == expected[: len(spoken)]
            assert len(expected) in (len(spoken), bound(CLIPS[i], name))
    assert not changes or 0 < ended < len(CLIPS)


@pytest.mark.parametrize("name", BOTH)
def test_a_hypothesis_is_bounded(speech, name):
    """The toys never end by themselves: a hypothesis that does not loop is as long as it may be."""
    model = speech(name)
    with rules(model, eos_token_id=3, suppress_tokens=[3]):
        rows = own_tokens(model, CLIPS, "it")
        looped = [hypothesis.looped for hypothesis in recognize_clips(model, CLIPS, "it")]
    assert [bound(c, name) for c in CLIPS] == [12, 14, 20, 10, 15, 35, 11, 44]
    assert sum(looped) < len(CLIPS) / 2
    for clip, row, loops in zip(CLIPS, rows, looped, strict=True):
        length = len(row) - PROMPT[name]
        assert (length < bound(clip, name)) if loops else (length == bound(clip, name))


def all_but(model, letters):
    """Every token except those of some letters."""
    said = {model.tokenizer.convert_tokens_to_ids(letter) for letter in letters}
    return [token for token in range(model.module.config.vocab_size) if token not in said]


@pytest.mark.parametrize("words", [1, 2, 3])
@pytest.mark.parametrize("name", BOTH)
def test_a_model_that_knows_few_words_loops(speech, name, words):
    """Hypotheses keep one copy of what they repeat, whatever else is in the batch."""
    model, prompt = speech(name), PROMPT[name]
    with rules(model, suppress_tokens=all_but(model, "abc"[:words])):
        heard = recognize_clips(model, CLIPS, "it")
        rows = own_tokens(model, CLIPS, "it")
        assert heard == recognize_clips(single(model), CLIPS, "it")
        assert [h.text for h in heard] == transcribe_clips(model, CLIPS, "it")
    assert any(h.looped for h in heard)
    for clip, hypothesis, row in zip(CLIPS, heard, rows, strict=True):
        assert hypothesis.text == model.tokenizer.decode(row[prompt:])
        if words == 1:
            assert hypothesis.looped
            assert hypothesis.text == "a"
        if not hypothesis.looped:
            assert len(row) - prompt == bound(clip, name)


def test_a_looping_clip_changes_none_beside_it(speech):
    """In one batch some clips loop and some do not; each is as it is alone."""
    model = speech("whisper")
    clips = toys.clips([2.0] * 12, seed=5)
    with rules(model, suppress_tokens=all_but(model, "abcdefgh")):
        together = recognize_clips(replace(model, batch_size=12), clips, "it")
        alone = [recognize_clips(model, [clip], "it")[0] for clip in clips]
    assert together == alone
    assert 0 < sum(h.looped for h in together) < len(clips)


def test_a_hypothesis_fits_into_the_decoder(speech, model_folder, tmp_path):
    model = speech("whisper")
    module = toys.whisper(max_target_positions=20)
    small = replace(model, module=module.requires_grad_(False))
    with rules(small, eos_token_id=3, suppress_tokens=[3]):
        rows = own_tokens(small, CLIPS, "it")
    assert max(len(row) for row in rows) == 20
    assert all(transcribe_clips(small, CLIPS, "it"))


@pytest.mark.parametrize("name", BOTH)
def test_tokens_that_are_never_said(speech, name):
    model = speech(name)
    config = model.module.generation_config
    rows = [row[PROMPT[name] :].tolist() for row in own_tokens(model, CLIPS, "it")]
    spoken = {token for row in rows for token in row}
    assert not spoken & set(config.suppress_tokens)
    first = {row[0] for row in rows}
    assert not first & set(config.begin_suppress_tokens)
    likely = max(spoken, key=lambda t: sum(row.count(t) for row in rows))
    with rules(model, suppress_tokens=[*config.suppress_tokens, likely]):
        again = [r[PROMPT[name] :].tolist() for r in own_tokens(model, CLIPS, "it")]
    assert not any(likely in row for row in again)
    opening = next(iter(first))
    with rules(model, begin_suppress_tokens=[*config.begin_suppress_tokens, opening]):
        again = [r[PROMPT[name] :].tolist() for r in own_tokens(model, CLIPS, "it")]
    assert opening not in {row[0] for row in again}


def test_the_prompt(speech):
    for row in own_tokens(speech("whisper"), CLIPS, "fr"):
        assert row[:4].tolist() == [
            SPECIAL[f"<|{name}|>"]
            for name in ("startoftranscript", "fr", "transcribe", "notimestamps")
        ]
    english = toys.whisper_special(multilingual=False)
    for row in own_tokens(speech("whisper-english"), CLIPS):
        assert row[:2].tolist() == [english["<|startoftranscript|>"], english["<|notimestamps|>"]]


def test_names_of_a_language(speech):
    model, clips = speech("whisper"), CLIPS[:3]
    expected = transcribe_clips(model, clips, "it")
    for language in ("IT", "it_it", "it-IT", "italian", "Italian", " it ", "ITALIAN"):
        ((batch, _), *_) = model.batches(clips, language)
        assert batch.language == "it"
        assert transcribe_clips(model, clips, language) == expected


def test_more_names_of_a_language(speech):
    for language, code in (("zh_cn", "zh"), ("Mandarin", "zh"), ("german", "de"), ("de_at", "de")):
        ((batch, _), *_) = speech("whisper").batches(CLIPS, language)
        assert batch.language == code


def test_the_language_matters(speech):
    model = speech("whisper")
    assert transcribe_clips(model, CLIPS, "it") != transcribe_clips(model, CLIPS, "en")


def test_an_unknown_language(speech):
    for language in ("klingon", "", "xx_yy", "italien"):
        with pytest.raises(
            FedsimError,
            match=rf"'{language}': .+; use an ISO code \(it\)",
        ):
            transcribe_clips(speech("whisper"), CLIPS, language)
        with pytest.raises(FedsimError, match="did you mean 'italian'"):
            transcribe_clips(speech("whisper"), CLIPS, "italien")


def test_a_language_that_this_model_does_not_know(speech):
    """The list of all Whispers is longer than that of most: Cantonese came with large-v3."""
    for language in ("es", "cantonese", "yue_hant_hk"):
        with pytest.raises(FedsimError, match=rf"language '{language}'; give one of its"):
            transcribe_clips(speech("whisper"), CLIPS, language)


def test_the_model_detects_the_language(speech):
    """The likeliest language token, clip by clip; the transcript is that of the language found."""
    model = speech("whisper")
    tokens = own_tokens(model, CLIPS, None)
    names = {v: k for k, v in SPECIAL.items()}
    found = [names[int(row[1])].strip("<|>") for row in tokens]
    assert set(found) <= set(toys.LANGUAGES)
    for clip, row, code in zip(CLIPS, tokens, found, strict=True):
        ((batch, _),) = single(model).batches([clip], None)
        detected = model.module.detect_language(batch.inputs["input_features"])
        assert int(detected.reshape(-1)[0]) == int(row[1])
        assert own_tokens(model, [clip], code)[0].tolist() == row.tolist()


def test_detection_looks_at_language_tokens_only(speech, model_folder):
    model = speech("whisper")
    with rules(model, lang_to_id={"<|de|>": SPECIAL["<|de|>"]}):
        assert {int(row[1]) for row in own_tokens(model, CLIPS, None)} == {SPECIAL["<|de|>"]}


@pytest.mark.parametrize("name", BOTH)
def test_forward_is_transformers_teacher_forced_call(speech, name):
    model = speech(name)
    tokens = own_tokens(model, CLIPS, "de")
    for batch, places in model.batches(CLIPS, "de"):
        rows = [tokens[i] for i in places]
        forced = model.with_tokens(batch, rows)
        answers = model.forward(forced)
        for features, row, answer in zip(
            batch.inputs["input_features"], rows, answers, strict=True
        ):
            with torch.no_grad():
                expected = model.module(
                    input_features=features[None], decoder_input_ids=row[None, :-1]
                ).logits[0]
            torch.testing.assert_close(answer[: len(row) - 1], expected, atol=1e-4, rtol=1e-4)


def test_forward_repeats_the_transcript(speech):
    """Teacher-forced over its own greedy tokens, the likeliest next token is the next of them."""
    model = speech("whisper")
    tokens = own_tokens(model, CLIPS, "de")
    barred = model.module.generation_config.suppress_tokens
    for batch, places in model.batches(CLIPS, "de"):
        logits = model.forward(model.with_tokens(batch, [tokens[i] for i in places]))
        logits[:, :, barred] = -torch.inf
        for i, answer in zip(places, logits, strict=True):
            spoken = tokens[i][5:].tolist()  # the first one has its own barred tokens
            assert answer[4 : len(tokens[i]) - 1].argmax(-1).tolist() == spoken


def test_a_forward_pass_needs_tokens(speech):
    ((batch, _), *_) = speech("whisper").batches(CLIPS, "it")
    with pytest.raises(ValueError, match="needs tokens"):
        speech("whisper").forward(batch)


@pytest.mark.parametrize("name", BOTH)
def test_targets_are_the_transcript_one_step_later(speech, name):
    model, prompt = speech(name), PROMPT[name]
    end = model.module.generation_config.eos_token_id
    ((batch, _),) = model.batches(CLIPS[:3], "it")
    row = torch.arange(prompt)
    rows = [torch.cat([row, torch.tensor(spoken)]) for spoken in ([10, 11, 12], [20], [30, 31])]
    forced = model.with_tokens(batch, rows)
    inputs = forced.inputs["decoder_input_ids"].tolist()
    start = list(range(prompt))
    assert inputs == [[*start, 10, 11], [*start, 20, end], [*start, 30, 31]]
    none = [-100] * (prompt - 1)
    assert forced.targets.tolist() == [
        [*none, 10, 11, 12],
        [*none, 20, -100, -100],
        [*none, 30, 31, -100],
    ]
    logits = model.forward(forced)
    by_hand = 0.0
    for i, spoken in enumerate(([10, 11, 12], [20], [30, 31])):
        for t, token in enumerate(spoken):
            by_hand -= float(F.log_softmax(logits[i, prompt - 1 + t], -1)[token])
    assert float(model.loss(forced, logits)) == pytest.approx(by_hand, rel=1e-5)


def test_the_loss_is_a_sum_over_clips(speech):
    model = speech("whisper")
    tokens = own_tokens(model, CLIPS, "it")

    def total(m):
        batches = tuning_batches(m, CLIPS, tokens, "it")
        return sum(float(m.loss(b, m.forward(b))) for b in batches)

    assert total(model) == pytest.approx(total(single(model)), rel=1e-5)


def test_a_clip_longer_than_the_window(speech, model_folder):
    model = speech("whisper")
    assert all(transcribe_clips(model, [toys.clip(4.0)], "it"))  # exactly the window
    with pytest.raises(AudioError) as caught:
        transcribe_clips(model, [CLIPS[0], toys.clip(4.1)], "it")
    assert str(caught.value) == (
        "a clip of 4.1 s is longer than the model's window of 4 s; cut it, or leave it out "
        "(corpus.max_seconds)"
    )
    with pytest.raises(AudioError, match=r"of 31 s is .+ leave it out \(corpus.max_seconds\)$"):
        transcribe_clips(model, [toys.clip(31)], "it")
    short = load_model(model_folder("whisper"), window_s=2)
    with pytest.raises(AudioError, match=r"3 s is longer than the model's window of 2 s; "):
        transcribe_clips(short, CLIPS, "it")


def test_frames_that_are_speech(speech):
    """Of the encoder: 100 mel frames a second, halved by its second convolution; by hand."""
    model = speech("whisper")
    clips = [toys.clip(n / 16_000) for n in (8000, 8001, 8160, 8161, 64_000)]
    ((batch, places), (last, _)) = model.batches(clips, "it")
    assert places == [0, 1, 2, 3]
    mel, encoder = [50, 51, 51, 52], [25, 26, 26, 26]
    for name, frames in batch.speech.items():
        if name == "model.encoder.conv1":
            assert frames.tolist() == mel
        else:
            assert frames.tolist() == encoder
    named = {a.name for a in model.layers}
    cross = {n for n in named if "encoder_attn.k_proj" in n or "encoder_attn.v_proj" in n}
    assert set(batch.speech) == {n for n in named if ".encoder." in n} | cross
    assert last.speech["model.encoder.conv1"].tolist() == [400]
    features = batch.inputs["input_features"]
    assert features.shape == (4, 80, 400)
    for row, frames in zip(features, mel, strict=True):
        silence = row[:, frames + 2 :]  # but for the reach of the analysis window
        assert float(silence.max() - silence.min()) == 0
        assert float(row[:, :frames].std()) > 0.05


def test_frames_of_the_decoder_are_tokens(speech):
    model = speech("whisper")
    tokens = own_tokens(model, CLIPS, "it")
    named = {a.name for a in model.layers}
    decoder = {
        n
        for n in named
        if ".encoder." not in n
        and "encoder_attn.k_proj" not in n
        and "encoder_attn.v_proj" not in n
    }
    assert "proj_out" in decoder
    for batch, places in model.batches(CLIPS, "it"):
        forced = model.with_tokens(batch, [tokens[i] for i in places])
        used = [len(tokens[i]) - 1 for i in places]
        assert set(forced.frames_in) == set(forced.frames_out) == decoder
        for counts in (forced.frames_in, forced.frames_out):
            assert all(frames.tolist() == used for frames in counts.values())


def test_sensitivities_of_batches_are_those_of_single_clips(speech):
    for measure in ("median", "abs-max", "std"):
        model = speech("whisper")
        tokens = own_tokens(model, CLIPS, "it")
        together, alone = (
            sense(m, tuning_batches(m, CLIPS, tokens, "it"), measure, capacity=1 << 21)
            for m in (model, single(model))
        )
        np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_sensitivities_by_hand(speech):
    """Of some layers of one clip: the median of what the layer answers to speech, to the frame."""
    model = speech("whisper")
    clip = [CLIPS[2]]
    tokens = own_tokens(model, clip, "it")
    (batch,) = tuning_batches(model, clip, tokens, "it")
    seen = {}
    modules = dict(model.module.named_modules())
    names = ["model.encoder.conv1", "model.encoder.layers.1.fc1", "proj_out"]
    handles = [
        modules[n].register_forward_hook(lambda _, a, out, n=n: seen.__setitem__(n, out[0]))
        for n in names
    ]
    model.forward(batch)
    for handle in handles:
        handle.remove()
    expected = [
        float(seen["model.encoder.conv1"][:, :100].abs().quantile(0.5)),
        float(seen["model.encoder.layers.1.fc1"][:50].abs().quantile(0.5)),
        float(seen["proj_out"][: len(tokens[0]) - 1].abs().quantile(0.5)),
    ]
    values = dict(zip([a.name for a in model.layers], sense(model, [batch]), strict=True))
    np.testing.assert_allclose([values[n] for n in names], expected, rtol=1e-5)


def test_what_calibration_sees_of_batches_is_what_it_sees_of_single_clips(speech):
    model = speech("whisper")
    clips = CLIPS[:3]
    tokens = own_tokens(model, clips, "it")
    both = [
        observe(m, tuning_batches(m, clips, tokens, "it"), fisher=True, capacity=4000)
        for m in (model, single(model))
    ]
    assert set(both[0]) == {a.name for a in model.layers}
    for layer, together in both[0].items():
        alone = both[1][layer]
        assert together.low == pytest.approx(alone.low, rel=1e-4, abs=1e-5)
        assert together.high == pytest.approx(alone.high, rel=1e-4, abs=1e-5)
        torch.testing.assert_close(together.rows, alone.rows, atol=1e-3, rtol=1e-3)
        assert float(together.fisher.sum()) > 0, layer
        scale = float(alone.fisher.max())
        torch.testing.assert_close(together.fisher, alone.fisher, atol=1e-3 * scale, rtol=1e-2)
