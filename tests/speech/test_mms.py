"""MMS: a language is its adapters, its head and its vocabulary."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import toys
import transformers
from safetensors.torch import save_file

from fedsim import load_model, load_personalized, personalize
from fedsim.errors import FedsimError
from fedsim.speech.models.base import transcribe_clips

CLIPS = toys.clips([0.31, 0.5, 0.5, 0.1, 0.77])
GREEK = ("<pad>", "<s>", "</s>", "<unk>", "|", *"αβγδεζηθικλμνξοπρστυφχψω")
SAME = ("<pad>", "<s>", "</s>", "<unk>", "|", *"zyxwvutsrqponmlkjihgfedcba'")
"""As many letters as English has, in another order: no shape tells them apart."""
VOCABULARIES = {"eng": toys.LETTERS, "ell": GREEK, "zzz": SAME}


@pytest.fixture(scope="module")
def mms(tmp_path_factory):
    """The folder of a toy with three languages, as `facebook/mms-1b-all` has a thousand."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("mms")
    module = toys.wav2vec2("layer", adapter_attn_dim=8, do_stable_layer_norm=True)
    toys.save(module, folder)
    for seed, (language, letters) in enumerate(VOCABULARIES.items()):
        generator = torch.Generator().manual_seed(seed)
        weights = {}
        for name, weight in module._get_adapters().items():
            shape = (len(letters), *weight.shape[1:]) if "lm_head" in name else weight.shape
            noise = torch.randn(shape, generator=generator)
            if name == "lm_head.bias":
                noise[1:4] = -100.0
            weights[name] = noise if "lm_head" in name else weight.detach() + 0.5 * noise
        save_file(weights, folder / f"adapter.{language}.safetensors")
    nested = {lang: {c: i for i, c in enumerate(v)} for lang, v in VOCABULARIES.items()}
    (folder / "vocab.json").write_text(json.dumps(nested))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"target_lang": "eng"}))
    return folder


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
