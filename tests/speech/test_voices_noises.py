"""Background noises: each of its own kind, in spectrum and in time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from voice_toys import RATE

from fedsim.scenario.place import DEFAULT_NOISES, NOISES


def noise(name: str, who: int = 0, clip: int = 0, n: int = 16 * 4096) -> np.ndarray:
    return NOISES[name].make(n, np.random.default_rng([who]), np.random.default_rng([clip]))


def bands_db(samples: np.ndarray) -> np.ndarray:
    """The level in each third of an octave from 60 Hz to 7 kHz, against the mean of all."""
    power = np.square(np.abs(np.fft.rfft(samples)))
    hertz = np.fft.rfftfreq(len(samples), 1 / RATE)
    edges = 60 * 2 ** (np.arange(22) / 3)
    level = [power[(hertz >= a) & (hertz < b)].mean() for a, b in pairwise(edges)]
    found = 10 * np.log10(level)
    return found - found.mean()


def level_std(samples: np.ndarray) -> float:
    """How far the level of 50 ms wanders, in dB."""
    frames = samples[: len(samples) // 800 * 800].reshape(-1, 800)
    return float(np.std(10 * np.log10(np.mean(np.square(frames), axis=1))))


@pytest.mark.parametrize("name", DEFAULT_NOISES)
def test_a_noise_is_seeded_of_any_length_and_of_one_speaker(name):
    np.testing.assert_array_equal(noise(name, 1, 2), noise(name, 1, 2))
    for n in (4096, 16_000, 100_001):
        made = noise(name, n=n)
        assert made.shape == (n,)
        assert np.isfinite(made).all()
        assert np.std(made) > 0
    clips = [noise(name, 1, clip, 12 * RATE) for clip in range(4)]
    assert np.abs(np.corrcoef(clips) - np.eye(4)).max() < 0.5  # the same fan, another moment
    others = [bands_db(noise(name, who, 0, 12 * RATE)) for who in range(2, 8)]
    mine = [bands_db(clip) for clip in clips]
    within = np.mean([np.abs(a - b).mean() for a, b in pairwise(mine)])
    assert np.median([np.abs(mine[0] - other).mean() for other in others]) > 1.2 * within


def test_noises_differ_in_their_spectrum():
    """Of two kinds the mean spectra are further apart than two halves of the speakers of one."""
    found = {
        name: np.array([bands_db(noise(name, who, who)) for who in range(8)])
        for name in DEFAULT_NOISES
    }
    halves = [np.abs(f[::2].mean(axis=0) - f[1::2].mean(axis=0)).mean() for f in found.values()]
    means = {name: f.mean(axis=0) for name, f in found.items()}
    apart = {(a, b): np.abs(means[a] - means[b]).mean() for a in means for b in means if a < b}
    assert min(apart.values()) > 2.5, apart
    assert min(apart.values()) > 1.2 * max(halves), (apart, halves)


@pytest.mark.slow
def test_noises_differ_in_time():
    """Fan and car are steady; traffic comes and goes, voices and music begin and end."""
    steady, moving = (
        {name: np.median([level_std(noise(name, w, w)) for w in range(12)]) for name in names}
        for names in (("fan", "car"), ("street", "babble", "music"))
    )
    assert max(steady.values()) < 2.5
    assert min(moving.values()) > 2.8

    def modulation(name: str, low: float, high: float) -> float:
        """The share of a band in how the level moves, 0.2 to 16 Hz."""
        shares = []
        for who in range(12):
            made = noise(name, who, who, 20 * RATE)
            level = np.sqrt(np.mean(np.square(made.reshape(-1, 400)), axis=1))  # 40 a second
            power = np.square(np.abs(np.fft.rfft(level - level.mean())))
            hertz = np.fft.rfftfreq(len(level), 1 / 40)
            band = power[(hertz >= low) & (hertz < high)].sum()
            shares.append(band / power[(hertz >= 0.2) & (hertz < 16)].sum())
        return float(np.mean(shares))

    syllables = {name: modulation(name, 1.5, 8) for name in ("babble", "street", "music")}
    slow = {name: modulation(name, 0.2, 1.5) for name in ("babble", "street", "music")}
    assert slow["street"] > 1.5 * slow["babble"]
    assert syllables["babble"] > 1.5 * syllables["street"]
    assert slow["street"] > 1.5 * slow["music"]


def test_music_and_fan_have_tones_and_a_street_has_none():
    def tones(name: str) -> float:
        """How far the strongest line of 80 to 1000 Hz stands above those around it, in dB."""
        found = []
        for who in range(8):
            power = np.square(np.abs(np.fft.rfft(noise(name, who, who) * np.hanning(16 * 4096))))
            smooth = np.convolve(power, np.ones(401) / 401, "same")
            band = slice(330, 4096)
            found.append(10 * np.log10((power[band] / smooth[band]).max()))
        return float(np.median(found))

    assert min(tones("music"), tones("fan")) > tones("street") + 2
