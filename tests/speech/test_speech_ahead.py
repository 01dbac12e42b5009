"""Features made in a thread ahead of a GPU: the same batches, and so the same results."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
import toys
from fake_gpu import GPU, fake_gpu

from fedsim.base.ahead import ahead
from fedsim.errors import AudioError
from fedsim.quant.sensitivity import sense
from fedsim.speech.models.base import own_tokens, recognize_clips, tuning_batches

NAMES = (
    "ctc-layer",
    "whisper",
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("ctc-group", "conformer", "classifier")),
)
CLIPS = toys.clips([0.4, 0.55, 0.4, 0.7, 0.3, 0.5, 0.45, 0.6, 0.35])


def threads():
    return [t for t in threading.enumerate() if t.name == "fedsim-ahead"]


@pytest.mark.parametrize("name", NAMES)
def test_results_are_equal_to_the_bit(speech, name):
    model = speech(name)
    with torch.inference_mode():
        found = {}
        for batch, places in ahead(model.batches(CLIPS, "en")):
            found |= dict(zip(places, model.transcribe(batch), strict=True))
    assert [found[i] for i in range(len(CLIPS))] == recognize_clips(model, CLIPS, "en")
    tokens = own_tokens(model, CLIPS, "en")
    here = sense(model, tuning_batches(model, CLIPS, tokens, "en"))
    np.testing.assert_array_equal(
        sense(model, ahead(tuning_batches(model, CLIPS, tokens, "en"))), here
    )


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_a_gpu_are_those_of_the_processor(speech, name):
    here = list(speech(name).batches(CLIPS, "en"))
    assert len(here) > 1
    with fake_gpu(speech(name)) as gpu:
        there = list(gpu.model.batches(CLIPS, "en"))
        assert [places for _, places in there] == [places for _, places in here]
        for (one, _), (other, _) in zip(there, here, strict=True):
            assert {x.device.type for x in one.inputs.values()} == {GPU.type}
            assert [x.shape for x in one.inputs.values()] == [
                x.shape for x in other.inputs.values()
            ]
            assert {k: v.tolist() for k, v in one.frames_out.items()} == {
                k: v.tolist() for k, v in other.frames_out.items()
            }
    assert threads() == []


def test_only_a_gpu_has_a_thread(speech):
    batches = speech("ctc-layer").batches(CLIPS)
    next(batches)
    assert threads() == []
    with fake_gpu(speech("ctc-layer")) as gpu:
        batches = gpu.model.batches(CLIPS)
        next(batches)
        assert len(threads()) == 1
        batches.close()
    assert threads() == []


def test_a_clip_that_does_not_fit_its_window_is_an_error_as_ever(speech):
    """Raised in the thread, after the batches before it."""
    long = np.zeros(31 * 16_000, np.float32)
    with fake_gpu(speech("whisper")) as gpu:
        batches = gpu.model.batches([*CLIPS[:8], long], "en")
        assert [len(next(batches)[1]) for _ in range(2)] == [4, 4]
        with pytest.raises(AudioError, match="longer than the model's window"):
            next(batches)
    assert threads() == []
