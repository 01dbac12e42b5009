"""A GPU that runs out of memory: batches are halved, and one clip that does not fit is an error."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import pytest
import torch
import toys

from fedsim.errors import FedsimError
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.onepass import forward_only
from fedsim.quant.sensitivity import sense
from fedsim.speech.fitting import fitted, fitted_together
from fedsim.speech.models.base import transcribe_clips
from fedsim.speech.public_model import PublicModel, own_losses
from fedsim.speech.public_set import PublicClip, public_set_of
from fedsim.speech.tuning import tuning_pass

CLIPS = toys.clips([0.4, 0.5, 0.6, 0.7])
DEPTHS = (2, 4)


@dataclass(frozen=True)
class Model:
    """As much of a model as deciding on its batches takes."""

    batch_size: int


class Room:
    """The memory of a GPU that holds the activations of a few clips, `clips`."""

    def __init__(self, clips: int) -> None:
        self.clips, self.refused = clips, 0

    def check(self, network, args, kwargs) -> None:
        if len(kwargs["input_values"]) > self.clips:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture
def small(speech):
    """Clips that fit -> a model with batches of four on such a GPU, and its memory."""

    def make(clips: int):
        network, room = copy.deepcopy(speech("ctc-layer").module), Room(clips)
        network.register_forward_pre_hook(room.check, with_kwargs=True)
        return replace(speech("ctc-layer"), module=network, batch_size=4), room

    return make


def test_batches_are_halved_until_they_fit(small):
    """To what batches of that size give, in every pass over the clips."""
    model, room = small(1)
    alone, _ = small(4)
    alone = replace(alone, batch_size=1)
    assert transcribe_clips(model, CLIPS) == transcribe_clips(alone, CLIPS)
    assert room.refused == 2  # of four, and of two
    passed, expected = (
        tuning_pass(m, CLIPS).sense(lambda m, b: sense(m, b), ["cosine"], moments=True)
        for m in (model, alone)
    )
    np.testing.assert_array_equal(passed.found, expected.found)
    for name, seen in expected.observed.items():
        assert torch.equal(seen.rows, passed.observed[name].rows)
    for name, moments in expected.moments.items():
        np.testing.assert_array_equal(moments.mean, passed.moments[name].mean)
    for calibrations in (["minmax"], ["hessian"]):
        found, like = (tuning_pass(m, CLIPS).observe(calibrations) for m in (model, alone))
        assert found.observed.keys() == like.observed.keys()
        assert all(a.high == like.observed[n].high for n, a in found.observed.items())
    how = "nearest", WeightFormat("per_channel"), DEPTHS
    tables = [own_losses(tuning_pass(m, CLIPS), *how).values for m in (model, alone)]
    np.testing.assert_array_equal(*tables)


def test_public_passes_too(small):
    """Moments and losses of a public model; more than its own batches hold are never tried."""
    model, room = small(2)
    clips = public_set_of(PublicClip(clip, None) for clip in CLIPS)
    public = PublicModel(model, lambda: clips, 1)
    assert public.moments.keys() == {layer.name for layer in model.layers}
    public.losses("nearest", WeightFormat("per_channel"), DEPTHS)
    assert len(public.wide) == len(model.layers)
    assert room.refused == 4  # moments, losses, and two passes for the inputs


def test_every_pass_begins_with_the_models_own_batches(small):
    """Else a client's batches, and so its last digits, would depend on who came before."""
    model, room = small(2)
    for n in (1, 2, 3):
        tuning_pass(model, CLIPS).sense(forward_only, [])
        assert room.refused == n


def test_a_clip_that_does_not_fit_is_an_error(small):
    model, _ = small(0)
    with pytest.raises(FedsimError, match="a single clip does not fit the GPU's memory"):
        transcribe_clips(model, CLIPS)


def test_halving_is_logged_once(speech, caplog):
    model = replace(speech("ctc-layer"), batch_size=64)
    for _ in range(2):
        runs = count()

        def run(model, runs=runs):
            if next(runs) == 0:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return model.batch_size

        with caplog.at_level(logging.WARNING, "fedsim.gpu"):
            assert fitted(model, run) == 32
    (record,) = caplog.records
    assert record.getMessage().startswith("64 clips do not fit the GPU's memory together")


def test_other_errors_are_raised(speech):
    def run(model):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        fitted(speech("ctc-layer"), run)


def test_clients_that_do_not_fit_together_are_halved():
    """Down to one, whose batches are halved; every result is in its place."""
    tried = []

    def run(model, clients):
        tried.append((len(clients), model.batch_size))
        if len(clients) * model.batch_size > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [client * model.batch_size for client in clients]

    model = Model(8)
    assert fitted_together(model, [1, 2, 3], run) == [4, 8, 12]
    assert tried == [(3, 8), (1, 8), (1, 4), (2, 8), (1, 8), (1, 4), (1, 8), (1, 4)]
