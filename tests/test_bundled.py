"""The bundled models: what their cards say, measured again on speakers they never heard."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import paper
import pytest
from safetensors import safe_open
from torch import nn

import fedsim
from fedsim.base.paths import bundled_folder, bundled_names, resolve
from fedsim.errors import FedsimError
from fedsim.quant.linear import OneDnnLinear, mkl_is_slow
from fedsim.quant.sensitivity import sense
from fedsim.speech.models import load_model
from fedsim.speech.models.base import transcribe_clips, tuning_batches
from fedsim.speech.scoring import count_correct, count_errors
from fedsim.speech.voices.speaker import FIRST_TRAINING_SPEAKER
from training import heldout

NAMES = ["bundled:ctc", "bundled:keywords"]
SMALL = 10 * 2**20


@pytest.fixture(scope="module", params=NAMES)
def bundled(request):
    return load_model(request.param)


@pytest.fixture(scope="module")
def tested(bundled):
    """(clips, texts) of speakers and sentences that were never heard in training."""
    pairs = heldout.words(210) if bundled.task == "classify" else heldout.sentences(120)
    return [clip for clip, _ in pairs], [text for _, text in pairs]


def wrong(model, texts, hypotheses):
    """Share of words, or of clips, that are wrong."""
    if model.task == "classify":
        return 1 - count_correct(texts, hypotheses).correct / len(texts)
    found = count_errors(texts, hypotheses)
    return found.errors / found.words


def test_the_score(bundled, tested):
    """At most 10 % of words wrong, or 5 % of the keywords."""
    clips, texts = tested
    maximum = 0.05 if bundled.task == "classify" else 0.10
    assert wrong(bundled, texts, transcribe_clips(bundled, clips)) <= maximum


def test_bits_cost_what_the_card_says(bundled, tested):
    """Eight bits cost nothing, four a little, two everything: a plan matters."""
    clips, texts = tested
    tuning, clips, texts = clips[:8], clips[8:48], texts[8:48]
    full = wrong(bundled, texts, transcribe_clips(bundled, clips))
    rates = {}
    for bits in (8, 2):
        small = fedsim.personalize(
            bundled,
            tuning,
            budget_mb=100,
            **{**paper.OPTIONS, "allocation": "uniform"},
            bit_depths=(bits,),
        )
        rates[bits] = wrong(bundled, texts, small.transcribe(clips))
    assert rates[8] <= full + 0.02
    assert rates[2] > full + 0.3


def test_the_files(bundled):
    folder = bundled_folder(bundled.id)
    assert sum(p.numel() for p in bundled.module.parameters()) <= 5_000_000
    file = folder / "model.safetensors"
    assert file.stat().st_size <= SMALL
    with safe_open(file, "pt") as tensors:
        kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    assert kinds - {"I64"} == {"F16"}  # batch norm counts its batches in whole numbers
    card = (folder / "README.md").read_text()
    for heading in ("## Scores", "## Training", "## Limits"):
        assert heading in card
    assert "synthetic" in card
    assert re.search(r"\d,\d{3} steps, \d+ minutes", card)


def test_onednn_and_mkl_hear_the_same(bundled, tested):
    """Linear layers are computed by the one or the other, as the processor asks for."""
    clips = tested[0][:15]
    model = load_model(bundled.id)
    layers = [m for m in model.module.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == sum(layer.kind == "linear" for layer in model.layers)
    assert {type(layer) for layer in layers} == {OneDnnLinear if mkl_is_slow() else nn.Linear}
    heard, sensed = [], []
    for kind in (nn.Linear, OneDnnLinear):
        for layer in layers:
            layer.__class__ = kind
        heard.append(transcribe_clips(model, clips))
        sensed.append(sense(model, tuning_batches(model, clips, None)))
    np.testing.assert_allclose(sensed[1], sensed[0], rtol=1e-3)
    assert sum(a != b for a, b in zip(*heard, strict=True)) <= 1  # two labels may come close


def test_the_names():
    assert bundled_names() == NAMES
    assert resolve("bundled:ctc", Path("/anywhere")) == "bundled:ctc"
    with pytest.raises(FedsimError, match=r"'bundled:ct' does not come with fedsim: did you mean"):
        resolve("bundled:ct", Path())
    with pytest.raises(FedsimError, match=r"'bundled:\.\./ctc' does not come with fedsim"):
        load_model("bundled:../ctc")


def test_held_out_speakers_are_not_those_of_training():
    assert heldout.FIRST_SPEAKER + 10_000 < FIRST_TRAINING_SPEAKER


def test_a_model_file_of_a_bundled_model_is_read_back(tmp_path):
    """Its id means the same on every machine: no path is written into the file."""
    model = load_model("bundled:keywords")
    clips = [clip for clip, _ in heldout.words(6)]
    small = fedsim.personalize(model, clips, budget_mb=0.5, **paper.OPTIONS)
    path = tmp_path / "me.safetensors"
    assert small.save(path) == small.nbytes == path.stat().st_size
    assert b"bundled:keywords" in path.read_bytes()[:4096]
    assert fedsim.load_personalized(path).transcribe(clips) == small.transcribe(clips)
