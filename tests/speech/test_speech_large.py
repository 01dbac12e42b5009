"""Whisper large v3 by its shapes alone: the bytes that docs/gpus.md states of its parts."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import toys
from transformers import WhisperConfig, WhisperForConditionalGeneration

from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import find_layers, leftovers
from fedsim.quant.moments import Moments, moment_shapes, second_moments
from fedsim.speech.models.base import own_tokens, tuning_batches

GB = 2**30
LARGE = WhisperConfig(
    d_model=1280,
    encoder_layers=32,
    decoder_layers=32,
    encoder_attention_heads=20,
    decoder_attention_heads=20,
    encoder_ffn_dim=5120,
    decoder_ffn_dim=5120,
    vocab_size=51_866,
    num_mel_bins=128,
)
SHARES = ("self_attn.k_proj", "self_attn.v_proj", "encoder_attn.v_proj")
"""Layers that receive the tensor of the layer before them, and so share its moments."""


def moment_bytes(model):
    """All second moments of a Whisper, float32, those that are shared counted once."""
    shapes = moment_shapes(model)
    return 4 * sum(math.prod(s) for name, s in shapes.items() if not name.endswith(SHARES))


def test_which_layers_share_moments(speech):
    """The formula, against moments that were recorded."""
    model, clips = speech("whisper"), toys.clips([0.4, 0.5])
    batches = tuning_batches(model, clips, own_tokens(model, clips, "en"), "en")
    assert Moments(second_moments(model, batches)).nbytes == moment_bytes(model)


def test_the_parts_of_whisper_large():
    with torch.device("meta"):
        module = WhisperForConditionalGeneration(LARGE)
    layers = find_layers(module)
    weights = sum(layer.n_weights for layer in layers)
    rest = sum(tensor.numel() for tensor in leftovers(module, layers).values())
    assert weights + rest == pytest.approx(1.54e9, rel=0.005)  # as the paper of Whisper counts
    full = 4 * (weights + rest) / GB
    assert round(full, 2) == 5.75
    moments = moment_bytes(SimpleNamespace(module=module, layers=layers)) / GB
    assert round(moments, 1) == 8.1
    how = WeightFormat("group_128", True)
    table = sum(
        how.code_bytes(layer.shape, bits) + how.scale_bytes(layer.shape)
        for layer in layers
        for bits in (2, 3, 4)
    )
    assert round(table / GB, 1) == 1.7
    assert full + 3 * moments > 24  # by default: own moments, public ones, and their blend
    assert full / 2 + 3 * moments > 24  # also in half precision
    assert full + moments + table / GB + 1 < 24 * 0.75  # with nothing public
