"""Clips of several clients in shared batches: what each client's own batches give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
from fake_gpu import fake_gpu

from fedsim.quant.sensitivity import Sensing
from fedsim.quant.shared import shared_pass
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.models.base import (
    own_tokens,
    placed,
    recognize_clips,
    tuning_batches,
)
from fedsim.speech.together import (
    Clips,
    joins,
    recognize_together,
    sense_together,
    tokens_together,
)
from fedsim.speech.tuning import tuning_pass

CLIENTS = [toys.clips(lengths, seed=i) for i, lengths in enumerate([[0.4, 0.8, 0.5], [0.9], [0.3]])]
NAMES = "ctc-layer", "whisper", pytest.param("classifier", marks=pytest.mark.slow)


@pytest.fixture(params=[True, False], ids=["joined", "apart"])
def joined(request) -> bool:
    return request.param


@pytest.fixture
def model(speech, request):
    return replace(speech(request.param), batch_size=2)


def clients_of(model) -> list[Clips]:
    return [Clips(clips, "en", own_tokens(model, clips, "en")) for clips in CLIENTS]


@pytest.mark.parametrize("model", NAMES, indirect=True)
def test_hypotheses_are_those_of_each_client_alone(model, joined):
    found = recognize_together(model, clients_of(model), joined=joined)
    assert found == [recognize_clips(model, clips, "en") for clips in CLIENTS]


@pytest.mark.parametrize("model", ["whisper"], indirect=True)
def test_pseudo_labels_are_those_of_each_client_alone(model, joined):
    found = tokens_together(model, clients_of(model), joined=joined)
    for tokens, clips in zip(found, CLIENTS, strict=True):
        expected = own_tokens(model, clips, "en")
        assert all(torch.equal(a, b) for a, b in zip(tokens, expected, strict=True))


@pytest.mark.parametrize("model", NAMES, indirect=True)
def test_statistics_are_those_of_each_client_alone(model, joined):
    """Where batches are joined, padding and products differ, and with them last digits."""
    how = (Sensing("median"), ["minmax"])
    found = sense_together(model, clients_of(model), *how, moments=True, joined=joined)
    for passed, clips in zip(found, CLIENTS, strict=True):
        expected = tuning_pass(model, clips, "en").sense(how[0].run, how[1], moments=True)
        tolerance = {"rtol": 1e-4, "atol": 1e-6} if joined else {"rtol": 0}
        np.testing.assert_allclose(passed.found.values, expected.found.values, **tolerance)
        for name, moments in expected.moments.items():
            assert passed.moments[name].rows == moments.rows
            size = np.abs(moments.mean).max()
            np.testing.assert_allclose(passed.moments[name].mean, moments.mean, atol=1e-5 * size)
        for name, seen in expected.observed.items():
            np.testing.assert_allclose(passed.observed[name].high, seen.high, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", ["ctc-layer"], indirect=True)
def test_joined_batches_are_fewer(model):
    """Three clients with two batches, one and one: the first of each are as long, in seconds."""
    shapes = []
    hook = model.module.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_values"].shape), with_kwargs=True
    )
    try:
        sense_together(model, clients_of(model), Sensing("median"), [], joined=True)
    finally:
        hook.remove()
    assert shapes == [(4, SAMPLE_RATE), (1, SAMPLE_RATE)]


@pytest.mark.parametrize("model", ["whisper"], indirect=True)
def test_tokens_are_padded_to_few_lengths(model):
    batch, places = next(model.batches(CLIENTS[0], "en"))
    tokens = [own_tokens(model, CLIENTS[0], "en")[i] for i in places]
    longest = max(len(row) for row in tokens) - 1
    most = model.module.config.max_target_positions
    for grain in (1, 5, 16, 1000):
        padded = replace(model, token_grain=grain).with_tokens(batch, tokens)
        length = padded.inputs["decoder_input_ids"].shape[1]
        assert length == min(-(-longest // grain) * grain, most)
        assert padded.targets.shape[1] == length
        assert (padded.targets[:, longest:] == -100).all()


@pytest.mark.parametrize("model", NAMES[:2], indirect=True)
def test_on_a_gpu_batches_are_joined_and_nothing_is_left_behind(model):
    """A tensor on the wrong device raises."""
    assert not joins(model)
    ready = [list(tuning_batches(model, c.clips, c.tokens, c.language)) for c in clients_of(model)]
    with fake_gpu(model) as gpu:
        assert joins(gpu.model)
        there = [(placed(gpu.model.module, batch) for batch in batches) for batches in ready]
        found = shared_pass(gpu.model, there, Sensing("median"))
        assert len(found) == 3
        assert set(gpu.waits.counts) == {"fetched"}  # numbers, at the end of the pass
