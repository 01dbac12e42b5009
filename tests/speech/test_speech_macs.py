"""MACs per layer against counts by hand, and against torch's own counter of operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from torch.utils.flop_counter import FlopCounterMode

from fedsim.speech.macs import count_macs


@pytest.mark.parametrize("name", ["ctc-group", "ctc-layer"])
def test_an_encoder_by_torchs_counter(speech, name):
    """All that torch counts in a pass but the products of attention, within a frame's rounding."""
    model = speech(name)
    macs = count_macs(model)
    seconds = 2.0
    (batch, _), *_ = model.batches([toys.clip(seconds)])
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.forward(batch)
    counted = sum(
        n
        for module, found in counter.get_flop_counts().items()
        if module == "Global"
        for operation, n in found.items()
        if "attention" not in str(operation) and "bmm" not in str(operation)
    )
    ours = np.add(macs.clip, np.multiply(macs.second, seconds)).sum()
    assert ours == pytest.approx(counted / 2, rel=0.03)
    assert not any(macs.token)


def test_an_encoder_behind_a_window_and_a_decoder(speech):
    """Whisper: the encoder costs the same for any clip, the decoder a place a token."""
    model = speech("whisper")
    macs = count_macs(model)
    layers = {layer.name: i for i, layer in enumerate(model.layers)}
    weights = [layer.n_weights for layer in model.layers]
    frames = toys.WINDOW * 100  # a feature each 10 ms, halved by the second convolution
    encoder = layers["model.encoder.layers.0.fc1"]
    assert (macs.clip[encoder], macs.second[encoder], macs.token[encoder]) == (
        frames / 2 * weights[encoder],
        0,
        0,
    )
    first = layers["model.encoder.conv1"]
    assert macs.clip[first] == frames * weights[first]
    decoder = layers["model.decoder.layers.0.fc1"]
    assert (macs.second[decoder], macs.token[decoder]) == (0, weights[decoder])


def test_a_table_costs_nothing_and_a_shared_weight_what_its_product_does(speech):
    model = speech("whisper")
    macs = count_macs(model)
    for i, layer in enumerate(model.layers):
        if layer.kind == "embedding":
            assert macs.clip[i] == macs.second[i] == macs.token[i] == 0
        if layer.aliases:
            assert macs.token[i] == layer.n_weights


def test_counting_leaves_no_hook(speech):
    model = speech("ctc-group")
    count_macs(model)
    assert not any(module._forward_hooks for module in model.module.modules())
