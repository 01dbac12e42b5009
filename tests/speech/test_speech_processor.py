"""The files beside a model's weights: lost, damaged, not fetched, or left out; and weights that no
model has."""

from __future__ import annotations

import json
import shutil

import paper
import pytest
import toys
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from fedsim import load_model, load_personalized, personalize
from fedsim.errors import FedsimError
from fedsim.speech.models.base import transcribe_clips
from fedsim.speech.models.processor import left_out

CLIPS = toys.clips([0.3, 0.5, 0.4])


@pytest.fixture
def copy(model_folder, tmp_path):
    """f(toy) -> a copy of its folder, to be spoiled."""
    return lambda name: shutil.copytree(model_folder(name), tmp_path / name)


@pytest.mark.parametrize("name", ["ctc-layer", "conformer"])
def test_a_lost_preprocessor_is_not_made_up(copy, speech, name):
    """Whether clips are normalized changes transcripts, and the weights do not say it."""
    folder = copy(name)
    was = json.loads((folder / "preprocessor_config.json").read_text())["do_normalize"]
    with pytest.raises(FedsimError, match=r"has a preprocessor_config.json, .*; remove normalize"):
        load_model(folder, normalize=was)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FedsimError, match=r"preprocessor_config.json: .*or set model.normalize: "):
        load_model(folder)
    model = load_model(folder, normalize=was)
    assert transcribe_clips(model, CLIPS) == transcribe_clips(speech(name), CLIPS)
    assert load_model(folder, normalize=not was).extractor.do_normalize == (not was)


def test_normalize_is_for_raw_audio(copy):
    with pytest.raises(FedsimError, match=r"takes no raw audio; remove it"):
        load_model(copy("whisper"), normalize=True)


def test_a_personal_file_remembers_what_stood_in(copy, tmp_path):
    folder = copy("ctc-layer")
    (folder / "preprocessor_config.json").unlink()
    mine = personalize(load_model(folder, normalize=True), CLIPS, budget_mb=0.0334, **paper.OPTIONS)
    mine.save(tmp_path / "mine.safetensors")
    again = load_personalized(tmp_path / "mine.safetensors")
    assert again.transcribe(CLIPS) == mine.transcribe(CLIPS)
    assert again.model.settings["normalize"] is True


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["ctc-layer", "whisper"])
def test_weights_that_diverged(copy, name, value):
    folder = copy(name)
    state = load_file(folder / "model.safetensors")
    key = next(key for key in state if key.endswith("layers.1.fc1.weight") or "intermediate" in key)
    state[key] = state[key].clone()
    state[key].view(-1)[3] = value
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FedsimError, match=rf"hold NaN or infinite numbers \(first: '{key}'\)"):
        load_model(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "vocab.json"])
def test_a_pointer_of_git_lfs(copy, file):
    folder = copy("ctc-layer")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 9\n"
    (folder / file).write_text(pointer)
    with pytest.raises(FedsimError, match=rf"{file} is a pointer of Git LFS.*git lfs pull"):
        load_model(folder)


def test_a_tokenizer_that_cannot_be_read_says_why(copy):
    folder = copy("ctc-layer")
    (folder / "vocab.json").write_text('{"a": ')
    with pytest.raises(FedsimError, match=r"tokenizer of model .* cannot be read .*vocab.json"):
        load_model(folder)


def test_a_language_model_that_is_left_out(copy, tmp_path, monkeypatch):
    folder = copy("ctc-layer")
    sentence = "its n-gram language model is not used"
    assert left_out(str(folder)) == left_out("org/model") == left_out("bundled:ctc") == ""
    (folder / "language_model").mkdir()
    assert sentence in left_out(str(folder))
    # On the hub, by the name of the processor in the file that was loaded.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    home, commit = tmp_path / "hub" / "models--org--model", 40 * "a"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots" / commit).mkdir(parents=True)
    about = home / "snapshots" / commit / "preprocessor_config.json"
    about.write_text('{"processor_class": "Wav2Vec2Processor"}')
    assert left_out("org/model") == ""
    about.write_text('{"processor_class": "Wav2Vec2ProcessorWithLM"}')
    assert sentence in left_out("org/model")
