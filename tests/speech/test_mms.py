"""MMS: a language is its adapters, its head and its vocabulary."""

from __future__ import annotations

import json
import shutil

import mms_toys
import pytest
import torch
import toys
import transformers
from mms_toys import VOCABULARIES

from fedsim import load_model, load_personalized, personalize
from fedsim.errors import FedsimError
from fedsim.speech.models import languages_of
from fedsim.speech.models.base import transcribe_clips
from fedsim.speech.models.mms import language_among

CLIPS = toys.clips([0.31, 0.5, 0.5, 0.1, 0.77])


@pytest.fixture(scope="module")
def mms(tmp_path_factory):
    """The folder of a toy with three languages, as `facebook/mms-1b-all` has a thousand."""
    torch.set_num_threads(1)
    return mms_toys.save(tmp_path_factory.mktemp("mms"))


def own_transcripts(folder, language):
    """As the model's card has it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    module = transformers.Wav2Vec2ForCTC.from_pretrained(folder)
    tokenizer.set_target_lang(language)
    module.load_adapter(language)
    heard = []
    for clip in CLIPS:
        inputs = extractor([clip], sampling_rate=toys.RATE, return_tensors="pt")
        with torch.no_grad():
            heard.append(tokenizer.decode(module(**inputs).logits[0].argmax(-1)).strip())
    return heard


@pytest.mark.parametrize("language", VOCABULARIES)
def test_transcripts_are_those_of_transformers(mms, language):
    model = load_model(mms, target_lang=language, batch_size=4)
    heard = transcribe_clips(model, CLIPS)
    assert heard == own_transcripts(mms, language)
    assert len(set(heard)) > 3
    head = next(layer for layer in model.layers if layer.name == "lm_head")
    assert head.shape[0] == len(VOCABULARIES[language])
    assert all(not p.requires_grad for p in model.module.parameters())


def test_a_personalized_model_keeps_its_language(mms, tmp_path):
    model = load_model(mms, target_lang="zzz")
    made = personalize(
        model, CLIPS, budget_mb=0.05, allocation="myqasr", rounding="nearest", calibration="float"
    )
    path = tmp_path / "user.safetensors"
    assert made.save(path) == path.stat().st_size == made.nbytes
    assert load_personalized(path).transcribe(CLIPS) == made.transcribe(CLIPS)
    for other in (None, "eng"):
        spoiled = shutil.copytree(mms, tmp_path / str(other))
        if other is None:  # with a single language, there is no choice
            vocabulary = json.loads((spoiled / "vocab.json").read_text())
            (spoiled / "vocab.json").write_text(json.dumps({"eng": vocabulary["eng"]}))
        with pytest.raises(
            FedsimError, match=r"target_lang 'zzz', but the one .* same target_lang"
        ):
            load_personalized(path, load_model(spoiled, target_lang=other))


def test_a_language_must_be_chosen_and_there(mms, model_folder, tmp_path):
    with pytest.raises(FedsimError, match=r"each of 3 languages; choose .*: for example ell, eng"):
        load_model(mms)
    with pytest.raises(FedsimError, match=r"target_lang is 'elk', of which .* mean 'ell'"):
        load_model(mms, target_lang="elk")
    spoiled = shutil.copytree(mms, tmp_path / "spoiled")
    (spoiled / "adapter.ell.safetensors").unlink()
    with pytest.raises(FedsimError, match=r"adapter.ell.safetensors of model .* cannot be read: "):
        load_model(spoiled, target_lang="ell")
    for name in ("ctc-layer", "classifier-layer", "conformer", "whisper"):
        with pytest.raises(
            FedsimError, match=r"has no adapters of languages.*; remove target_lang"
        ):
            load_model(model_folder(name), target_lang="eng")


NAMES = ("eng", "ell", "azj-script_cyrillic", "azj-script_latin", "cmn-script_simplified", "zzz")


@pytest.mark.parametrize(
    ("spoken", "name"),
    [
        *(("en", "eng"), ("eng", "eng"), ("en_us", "eng"), ("el", "ell"), ("Greek", "ell")),
        *(("zh", "cmn-script_simplified"), ("cmn_hans_cn", "cmn-script_simplified")),
        *(("zzz", "zzz"), ("azj-script_latin", "azj-script_latin")),
    ],
)
def test_what_corpora_call_a_language(spoken, name):
    assert language_among(spoken, NAMES, "toy") == name


def test_a_language_that_cannot_be_found():
    for spoken, problem in {
        "az": r"'az' is azj-script_cyrillic or azj-script_latin in model 'toy'; write one of these",
        "elk": r"'elk', for which model 'toy' has no adapter: did you mean 'ell'\?; choose other",
        None: r"each of 6 languages, and the client's is not known; name the column",
        "": r"each of 6 languages, and the client's is not known; name the column",
    }.items():
        with pytest.raises(FedsimError, match=problem):
            language_among(spoken, NAMES, "toy")


def test_which_models_have_languages(mms, model_folder, tmp_path):
    assert languages_of(str(mms)) == ("eng", "ell", "zzz")  # the tokenizer's own first
    for name in ("ctc-layer", "classifier-layer", "conformer", "whisper"):
        assert languages_of(str(model_folder(name))) == ()
    assert languages_of("bundled:ctc") == ()
