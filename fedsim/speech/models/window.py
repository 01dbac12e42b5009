"""The window of Whisper's encoder: a fixed number of seconds, filled up with silence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsim.errors import AudioError, FedsimError
from fedsim.speech.audio import SAMPLE_RATE

FRAMES_PER_SECOND = 100
"""Of the mel spectrogram; the encoder's second convolution halves them."""
_POSITIONS_PER_SECOND = FRAMES_PER_SECOND // 2
_FULL = "fedsim_full_window_s"
"""Attribute of a network whose window was cut: the seconds that it had."""


def window_seconds(module: nn.Module) -> float:
    """Return the seconds of audio that a network's encoder takes."""
    config: Any = module.config
    return config.max_source_positions / _POSITIONS_PER_SECOND


def windowed(
    module: nn.Module, extractor: Any, clips: Sequence[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mel features of clips (B, mels, frames of the window), and how many of the frames are
    of each clip (B,).

    Raises `AudioError` for a clip that is longer than the window.
    """
    window = window_seconds(module)
    longest = max(len(clip) for clip in clips) / SAMPLE_RATE
    if longest > window:
        # A window is a whole number of positions, and at most the checkpoint's own.
        needed = math.ceil(longest * _POSITIONS_PER_SECOND) / _POSITIONS_PER_SECOND
        advice = "cut it, or leave it out (corpus.max_seconds)"
        if needed <= getattr(module, _FULL, window):
            advice = (
                f"cut it, leave it out (corpus.max_seconds) or set model.window_s to at least "
                f"{needed:g}"
            )
        raise AudioError(
            f"a clip of {longest:.8g} s is longer than the model's window of {window:g} s; {advice}"
        )
    features = extractor(
        list(clips),
        sampling_rate=SAMPLE_RATE,
        padding="max_length",
        max_length=int(window * SAMPLE_RATE),
        truncation=False,
        return_tensors="pt",
    )["input_features"]
    frames = [-(-len(clip) * FRAMES_PER_SECOND // SAMPLE_RATE) for clip in clips]
    return features, torch.tensor(frames)


def shorten(module: nn.Module, window_s: float) -> None:
    """Cut the encoder's window to `window_s` seconds, in place.

    Raises `FedsimError` unless they are between 1 and the window that the network has.
    """
    config: Any = module.config
    full = window_seconds(module)
    if not 1 <= window_s <= full:
        raise FedsimError(f"model.window_s is {window_s:g}; use 1 to {full:g} seconds")
    positions = round(window_s * _POSITIONS_PER_SECOND)
    encoder: Any = getattr(module, "model", module).encoder  # a classifier has nothing around it
    table = nn.Embedding(positions, config.d_model)
    table.weight = nn.Parameter(
        encoder.embed_positions.weight[:positions].clone(), requires_grad=False
    )
    encoder.embed_positions = table
    encoder.max_source_positions = positions
    config.max_source_positions = positions
    setattr(module, _FULL, full)
