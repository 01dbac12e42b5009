"""Augmentation: how a training clip might have sounded elsewhere.

The voices are synthetic and clean. Changes of speed, pitch, equalization, echo, noise, bandwidth
and coding keep the models from relying on what only a synthesizer does.
"""

from __future__ import annotations

import numpy as np

RATE = 16_000
_BLOCK = 4096


def augment(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an altered copy of a clip, float32 (n,) at 16 kHz; its length may change by 12 %."""
    clip = _change_speed(clip, rng.uniform(0.88, 1.12)) if rng.random() < 0.7 else clip
    n = len(clip)
    size = -(-(n + RATE // 4) // _BLOCK) * _BLOCK
    spectrum = np.fft.rfft(clip, size)
    frequency = np.fft.rfftfreq(size, 1 / RATE)
    if rng.random() < 0.7:
        spectrum *= _equalizer(frequency, rng)
    if rng.random() < 0.4:
        spectrum *= np.fft.rfft(_room(rng), size)
    if rng.random() < 0.7:
        spectrum += _noise(frequency, spectrum, rng)
    if rng.random() < 0.2:  # a telephone
        spectrum *= (frequency > rng.uniform(100, 350)) & (frequency < rng.uniform(3200, 4000))
    clip = np.fft.irfft(spectrum, size)[:n].astype(np.float32)
    if rng.random() < 0.2:
        clip = _mu_law(clip)
    return clip


def _change_speed(clip: np.ndarray, factor: float) -> np.ndarray:
    """Return the clip played `factor` times as fast: pitch, formants and tempo move together."""
    at = np.arange(0, len(clip) - 1, factor)
    return np.interp(at, np.arange(len(clip)), clip).astype(np.float32)


def _equalizer(frequency: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a smooth random magnitude: 8 points an octave apart, 5 dB standard deviation."""
    octaves = np.log2(np.maximum(frequency, 40.0) / 62.5)
    points = np.cumsum(rng.normal(0, 3.0, 8))
    return 10 ** (np.interp(octaves, np.arange(8), points - points.mean()) / 20)


def _room(rng: np.random.Generator) -> np.ndarray:
    """Return an impulse response of up to 0.25 s."""
    time = np.arange(RATE // 4) / RATE
    echo = rng.standard_normal(len(time)) * 10 ** (-3 * time / rng.uniform(0.1, 0.7))
    echo *= 10 ** (rng.uniform(-20, -2) / 20) / np.sqrt(np.sum(echo**2))
    echo[0] = 1.0
    return echo


def _noise(frequency: np.ndarray, spectrum: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return coloured noise, 3 to 35 dB below the clip."""
    shape = np.maximum(frequency, 50.0) ** rng.uniform(-1.0, 0.3)
    noise = shape * (rng.standard_normal(len(shape)) + 1j * rng.standard_normal(len(shape)))
    ratio = np.linalg.norm(spectrum) / np.linalg.norm(noise)
    return noise * ratio * 10 ** (-rng.uniform(3, 35) / 20)


def _mu_law(clip: np.ndarray, mu: float = 255.0) -> np.ndarray:
    """Return the clip through 8-bit mu-law companding, at its own full scale."""
    peak = np.abs(clip).max() + 1e-9
    squeezed = np.sign(clip) * np.log1p(mu * np.abs(clip) / peak) / np.log1p(mu)
    steps = np.rint(squeezed * 127) / 127
    return (np.sign(steps) * np.expm1(np.abs(steps) * np.log1p(mu)) / mu * peak).astype(np.float32)
