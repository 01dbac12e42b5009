"""The models of several languages of one checkpoint."""

from __future__ import annotations

import mms_toys
import pytest
import torch
import toys

from fedsim import load_model
from fedsim.errors import FedsimError
from fedsim.scenario import load_scenario
from fedsim.speech.models.base import transcribe_clips
from fedsim.study.by_language import model_languages, open_study_models

CLIPS = toys.clips([0.4, 0.7])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return mms_toys.save(tmp_path_factory.mktemp("languages") / "mms")


@pytest.fixture
def write(folder, tmp_path):
    def write(**model):
        corpus = {"path": "clips", "group_by": "speaker"}
        chosen = {"model": {"id": str(folder)} | model, "corpus": corpus}
        file = toys.write_scenario(tmp_path / "toy.yaml", clients={"budget_mb": 1}, **chosen)
        return load_scenario(file)

    return write


def test_a_model_has_the_answers_of_its_language(write, folder):
    models = open_study_models(write())
    assert models.languages == ("eng", "ell", "zzz")
    for spoken, name in {"en": "eng", "el": "ell", "zzz": "zzz"}.items():
        alone = load_model(folder, target_lang=name)
        model = models.load(spoken).model
        assert transcribe_clips(model, CLIPS) == transcribe_clips(alone, CLIPS)
        assert model.settings == alone.settings


def test_what_does_not_differ_is_in_memory_once(write):
    models = open_study_models(write())
    first, other = models.first.model.module, models.load("el").model.module
    places = {name: t.data_ptr() for name, t in first.state_dict().items()}
    for name, tensor in other.state_dict().items():
        own = "adapter_layer" in name or "lm_head" in name
        assert (tensor.data_ptr() == places[name]) != own, name


def test_a_network_that_is_quantized_leaves_the_others_alone(write):
    """They share tensors, and no tensor is written to."""
    models = open_study_models(write())
    study, other = models.load("el"), models.load("zzz")
    heard = transcribe_clips(other.model, CLIPS)
    weights = {name: torch.zeros_like(w) for name, w in study.switch.full_weights().items()}
    study.switch.install(weights, study.leftovers, {})
    try:
        assert transcribe_clips(other.model, CLIPS) == heard
        again = open_study_models(write()).load("zzz").model
        assert transcribe_clips(models.load("zzz").model, CLIPS) == transcribe_clips(again, CLIPS)
    finally:
        study.switch.restore()


def test_the_first_language_has_adapters(write, folder):
    """A folder may hold those of a few languages, and the vocabularies of a thousand."""
    gone = folder / "adapter.eng.safetensors"
    kept = gone.read_bytes()
    gone.unlink()
    try:
        assert model_languages(write()) == ("ell", "eng", "zzz")
        models = open_study_models(write())
        with pytest.raises(
            FedsimError, match=r"adapter.eng.safetensors of model .* cannot be read"
        ):
            models.load("en")
    finally:
        gone.write_bytes(kept)


def test_one_language_for_all(write, model_folder):
    assert model_languages(write(target_lang="ell")) == ()
    models = open_study_models(write(target_lang="ell"))
    assert models.load("en") is models.load(None) is models.first
    assert model_languages(write(id=str(model_folder("ctc-layer")))) == ()
