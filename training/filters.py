"""Initial weights of the first convolution: a mel filter bank, which training then changes."""

from __future__ import annotations

import math

import torch

PHASES = 4


def mel_filters(channels: int, kernel: int, rate: int = 16_000) -> torch.Tensor:
    """Return filters, float32 (channels, 1, kernel): windowed tones on the mel scale.

    Each of `channels / 4` bands has four phases; behind a rectifier their sum is nearly the band's
    amplitude, whatever the phase of the sound.
    """
    bands = channels // PHASES
    mel = torch.linspace(_mel(80.0), _mel(7600.0), bands)
    hertz = 700 * (10 ** (mel / 2595) - 1)
    time = (torch.arange(kernel) - (kernel - 1) / 2) / rate
    # A high band is wider than a low one, so its window is shorter.
    width = torch.clamp(1.2 / (hertz / 8), 0.0025, 0.010)
    window = torch.exp(-0.5 * (time / (width[:, None] / 1.2)) ** 2)
    phase = torch.arange(PHASES) * math.pi / 2
    tone = torch.cos(2 * math.pi * hertz[:, None, None] * time + phase[None, :, None])
    filters = window[:, None, :] * tone
    filters = filters / filters.norm(dim=-1, keepdim=True)
    return filters.reshape(bands * PHASES, 1, kernel)


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)
