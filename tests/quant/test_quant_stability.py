"""Resampled sensitivities: those of the very clips that were drawn."""

from __future__ import annotations

import numpy as np
import toys

from fedsim.quant.sensitivity import sense
from fedsim.quant.stability import resampled_sensitivity
from fedsim.speech.models.base import tuning_batches


def test_each_resample_is_what_its_clips_say(speech):
    model = speech("ctc-group")
    clips = [toys.clip(0.3 + 0.05 * i, i) for i in range(5)]
    asked = []

    def batches_of(places):
        asked.append(places)
        return tuning_batches(model, [clips[i] for i in places], None)

    own, drawn = resampled_sensitivity(
        model, batches_of, 5, np.random.default_rng(3), resamples=4, measure="mean"
    )
    assert own.shape == (len(model.layers),)
    assert drawn.shape == (4, len(model.layers))
    np.testing.assert_array_equal(asked[0], np.arange(5))
    assert all(len(places) == 5 and set(places) <= set(range(5)) for places in asked)
    assert len({tuple(places) for places in asked}) > 2
    for places, values in zip(asked[1:], drawn, strict=True):
        chosen = [clips[i] for i in places]
        np.testing.assert_array_equal(
            values, sense(model, tuning_batches(model, chosen, None), "mean")
        )
    again = resampled_sensitivity(
        model, batches_of, 5, np.random.default_rng(3), resamples=4, measure="mean"
    )
    np.testing.assert_array_equal(again[1], drawn)


def test_one_clip_gives_no_spread(speech):
    model = speech("ctc-group")
    clip = toys.clip(0.4, 1)
    own, drawn = resampled_sensitivity(
        model,
        lambda places: tuning_batches(model, [clip for _ in places], None),
        1,
        np.random.default_rng(0),
        resamples=3,
    )
    np.testing.assert_array_equal(drawn, np.stack([own] * 3))
