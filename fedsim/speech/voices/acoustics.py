"""From synthesized samples to a recording: vocal tract, room, microphone and noise."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.voices.speaker import Speaker
from fedsim.speech.voices.synthesizer import SYNTHESIZER_RATE

_ECHO_DELAY_S = 0.004
_BLOCK = 4096  # Fourier transforms have a multiple of this length, which is always fast
_SILENCE = 64  # of 32,768: up to here, samples before and after speech are silence
_PAUSE_S = (0.05, 0.25)


def record(
    speech: np.ndarray, who: Speaker, rng: np.random.Generator, seconds: float = 0.0
) -> np.ndarray:
    """Return what the speaker's device records, float32 (samples,) at 16 kHz on a 16-bit grid.

    Args:
        speech: int16 (n,) at 22,050 Hz; not silent.
        who: the speaker, with vocal tract, room, microphone and noise.
        rng: draws the pauses around the speech, and the noise.
        seconds: minimum length of the clip, to which the pauses are widened.
    """
    import soxr

    # Played at a higher rate, every formant is higher, as with a shorter vocal tract.
    voiced = soxr.resample(
        speech.astype(np.float32), SYNTHESIZER_RATE * who.tract, SAMPLE_RATE, quality="MQ"
    )
    loud = np.flatnonzero(np.abs(voiced) > _SILENCE)
    voiced = voiced[loud[0] : loud[-1] + 1]
    before, after = (rng.uniform(*_PAUSE_S, 2) * SAMPLE_RATE).astype(int)
    missing = max(0, round(seconds * SAMPLE_RATE) - before - len(voiced) - after)
    before += (earlier := int(rng.integers(missing + 1)))
    after += missing - earlier
    end = before + len(voiced)
    n = -(-(end + after) // _BLOCK) * _BLOCK
    padded = np.zeros(n, np.float32)
    padded[before:end] = voiced
    # The convolution is circular: the echo beyond the end sounds at the start, as in a real room.
    heard = np.fft.irfft(np.fft.rfft(padded) * _response(who, n), n)[: end + after]
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) * _noise(who, n), n)[: end + after]
    heard *= 10 ** (who.level_db / 20) / _rms(heard[before:end])
    noise *= 10 ** ((who.level_db - who.snr_db) / 20) / _rms(noise)
    return (np.rint(np.clip(heard + noise, -1, 1) * 32_767) / 32_768).astype(np.float32)


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples))))


@lru_cache(maxsize=64)
def _response(who: Speaker, n: int) -> np.ndarray:
    """Return the frequency response of room and microphone, complex (n // 2 + 1,)."""
    time = np.arange(min(n, int(who.reverberation_s * SAMPLE_RATE))) / SAMPLE_RATE
    # The room is the same in every clip of a speaker, whatever the clip's length.
    echo = np.random.default_rng(who.number).standard_normal(len(time))
    echo *= (time > _ECHO_DELAY_S) * 10 ** (-3 * time / who.reverberation_s)
    room = echo * 10 ** (who.echo_db / 20) / np.sqrt(np.sum(np.square(echo)))
    room[0] = 1.0
    return np.fft.rfft(room, n) * _microphone(who, n)


@lru_cache(maxsize=64)
def _noise(who: Speaker, n: int) -> np.ndarray:
    """Return the magnitude response of the background noise, float (n // 2 + 1,)."""
    octaves = np.log2(np.maximum(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), 50.0) / 1000)
    return 10 ** (who.noise_slope_db * octaves / 20) * _microphone(who, n)


def _microphone(who: Speaker, n: int) -> np.ndarray:
    """Return the magnitude response of the microphone, float (n // 2 + 1,): a tilted band-pass."""
    frequency = np.maximum(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), 1.0)
    band = 1 / np.sqrt(
        (1 + (who.low_cut_hz / frequency) ** 4) * (1 + (frequency / who.high_cut_hz) ** 8)
    )
    return band * 10 ** (who.tilt_db * np.log2(np.maximum(frequency, 50.0) / 1000) / 20)
