"""Sensing on a copy of 8 bits: exactly what a model with those weights says, and near the full."""

from __future__ import annotations

import numpy as np
import pytest
import toys
from quant_toys import PER_CHANNEL
from scipy.stats import spearmanr

from fedsim.quant.proxy import pack_proxy, proxied
from fedsim.quant.rounding.independent import round_weight
from fedsim.quant.sensitivity import sense
from fedsim.quant.switch import switch_of
from fedsim.speech.models.base import own_tokens, transcribe_clips, tuning_batches

CLIPS = toys.clips([0.3, 0.5, 0.4, 0.45])


@pytest.mark.parametrize(("name", "language"), [("ctc-layer", None), ("whisper", "en")])
@pytest.mark.parametrize("measure", ["median", "abs-max", "spectral"])
def test_sensitivities(speech, name, language, measure):
    model = speech(name)
    switch = switch_of(model)
    packed = pack_proxy(switch.full_weights(), model.layers)

    def look():
        tokens = own_tokens(model, CLIPS, language)  # in the same mode
        batches = list(tuning_batches(model, CLIPS, tokens, language))
        return sense(model, batches, measure), transcribe_clips(model, CLIPS, language)

    full, _ = look()
    with proxied(model, packed):
        near, heard = look()
    again, _ = look()
    np.testing.assert_array_equal(again, full)

    rounded = {n: round_weight(w, 8, PER_CHANNEL) for n, w in switch.full_weights().items()}
    switch.install(rounded, switch.full_leftovers(), {})
    try:
        expected, said = look()
    finally:
        switch.restore()
    np.testing.assert_allclose(near, expected, rtol=1e-5)
    assert heard == said
    assert (near != full).all()
    if measure != "spectral":  # which compares two roundings, and is near 0.1 for every toy layer
        assert spearmanr(near, full).statistic > 0.98


def test_a_proxy_takes_a_byte_a_weight_and_a_scale_a_channel(speech):
    model = speech("whisper")
    packed = pack_proxy(switch_of(model).full_weights(), model.layers)
    assert [*packed] == [layer.name for layer in model.layers]
    for layer in model.layers:
        assert packed[layer.name].nbytes == layer.n_weights + 2 * layer.shape[0]
