"""Whisper large v3 by its shapes alone: the bytes that docs/gpus.md states of its parts."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import toys
from transformers import WhisperConfig, WhisperForConditionalGeneration

from fedsim.quant.footprint import packed_in_memory, rounding_bytes, table_bytes
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.layers import find_layers, leftovers
from fedsim.quant.moments import Moments, moment_shapes, second_moments
from fedsim.speech.models.base import own_tokens, tuning_batches
from fedsim.speech.public_model import DENSE_BYTES

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
    packed, dense = (part / GB for part in table_bytes(layers, how, range(2, 9), DENSE_BYTES))
    assert round(packed, 1) == 1.8
    assert dense == 1
    shapes = moment_shapes(SimpleNamespace(module=module, layers=layers))
    work = sum(rounding_bytes(layers, shapes, reads_moments=True, gpu=False)) / GB
    assert round(work, 1) == 1.2
    assert round(full + packed + dense + work, 1) == 9.7  # for the table of losses
    rounding = full + moments + work + packed_in_memory(layers, how, 8) / GB
    assert round(rounding, 1) == 16.5
    assert round(full + moments, 1) == 13.8  # while moments are recorded
    assert round(full / 2 + moments, 1) == 10.9
