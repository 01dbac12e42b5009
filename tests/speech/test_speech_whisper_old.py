"""Whisper checkpoints from before generation_config.json: completed, or refused in a sentence."""

from __future__ import annotations

import json
import shutil

import pytest
import toys

from fedsim import load_model
from fedsim.errors import AudioError, FedsimError
from fedsim.speech.models.base import transcribe_clips

CLIPS = toys.clips([0.3, 0.5, 0.4])
KEYS = ("no_timestamps_token_id", "lang_to_id", "task_to_id", "is_multilingual")


@pytest.fixture
def copy(model_folder, tmp_path):
    return lambda name: shutil.copytree(model_folder(name), tmp_path / name)


def forget(path, *keys):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in keys}))


@pytest.mark.parametrize("language", ["it", None])
@pytest.mark.parametrize("keys", [(key,) for key in KEYS] + [KEYS])
@pytest.mark.parametrize("name", ["whisper", "whisper-english"])
def test_missing_rules_are_those_of_the_tokenizer(copy, speech, name, keys, language):
    folder = copy(name)
    forget(folder / "generation_config.json", *keys)
    truth = transcribe_clips(speech(name), CLIPS, language)
    model = load_model(folder)
    assert transcribe_clips(model, CLIPS, language) == truth
    assert model.module.generation_config.is_multilingual == (name == "whisper")


@pytest.mark.parametrize("name", ["whisper", "whisper-english"])
def test_no_generation_config(copy, speech, name):
    """Suppressed tokens are in config.json of such a checkpoint."""
    folder = copy(name)
    rules = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    kept = {k: rules[k] for k in ("suppress_tokens", "begin_suppress_tokens")}
    (folder / "config.json").write_text(json.dumps(config | kept))
    truth = transcribe_clips(speech(name), CLIPS, "it")
    assert transcribe_clips(load_model(folder), CLIPS, "it") == truth


def test_a_tokenizer_without_the_token(copy):
    folder = copy("whisper")
    forget(folder / "generation_config.json", "no_timestamps_token_id")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|notimestamps|>", "<|quiet|>"))
    for name in ["tokenizer_config.json"]:
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("<|notimestamps|>", "<|quiet|>"))
    with pytest.raises(FedsimError, match=r"has no token <\|notimestamps\|>, .*: add the files"):
        load_model(folder)


def test_a_clip_a_little_too_long(model_folder):
    whole, cut = (load_model(model_folder("whisper"), window_s=s) for s in (None, 2))
    with pytest.raises(AudioError, match=r"clip of 4\.005 s .*window of 4 s; .*\(\S+\)$"):
        transcribe_clips(whole, [toys.clip(4.005)])
    with pytest.raises(
        AudioError, match=r"clip of 2\.005 s .*set model.window_s to at least 2\.02$"
    ):
        transcribe_clips(cut, [toys.clip(2.005)])
    wider = load_model(model_folder("whisper"), window_s=2.02)
    assert transcribe_clips(wider, [toys.clip(2.005)])
