"""From synthesized samples to a recording: vocal tract, room, microphone, noise and telephone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fedsim.scenario.place import NOISES
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.voices.places import QUIET, Scene
from fedsim.speech.voices.speaker import NOISE_STREAM, Speaker, own_rng
from fedsim.speech.voices.synthesizer import SYNTHESIZER_RATE

_ECHO_DELAY_S = 0.004
_BLOCK = 4096  # Fourier transforms have a multiple of this length, which is always fast
_SILENCE = 64  # of 32,768: up to here, samples before and after speech are silence
_PAUSE_S = (0.05, 0.25)
_TELEPHONE_HZ = (300.0, 3400.0)
_MU, _LEVELS = 255, 127  # of mu-law after ITU-T G.711: 127 levels on each side of zero


def record(
    speech: np.ndarray,
    who: Speaker,
    rng: np.random.Generator,
    seconds: float = 0.0,
    scene: Scene = QUIET,
) -> np.ndarray:
    """Return what the speaker's device records, float32 (samples,) at 16 kHz on a 16-bit grid.

    Args:
        speech: int16 (n,) at 22,050 Hz; not silent.
        who: the speaker, with vocal tract, room, microphone and noise.
        rng: draws the pauses around the speech, and the noise.
        seconds: minimum length of the clip, to which the pauses are widened.
        scene: where the device stands.
    """
    import soxr

    who = scene.heard(who)
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
    line = _telephone_band(n) if scene.telephone else 1.0
    heard = np.fft.irfft(np.fft.rfft(padded) * (_response(who, n) * line), n)[: end + after]
    noise = np.fft.irfft(_noise(who, n, rng, scene.noise) * line, n)[: end + after]
    heard *= 10 ** (who.level_db / 20) / _rms(heard[before:end])
    noise *= 10 ** ((who.level_db - who.snr_db) / 20) / _rms(noise)
    clip = np.clip(heard + noise, -1, 1)
    if scene.telephone:
        clip = _companded(clip)
    return (np.rint(clip * 32_767) / 32_768).astype(np.float32)


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


def _noise(who: Speaker, n: int, rng: np.random.Generator, name: str | None) -> np.ndarray:
    """Return the spectrum of the background noise, complex (n // 2 + 1,), of any level."""
    if name is None:
        return np.fft.rfft(rng.standard_normal(n)) * _own_noise(who, n)
    place = own_rng(NOISE_STREAM, who.language, who.number)
    return np.fft.rfft(NOISES[name].make(n, place, rng)) * _microphone(who, n)


@lru_cache(maxsize=64)
def _own_noise(who: Speaker, n: int) -> np.ndarray:
    """Return the magnitude response of the speaker's own noise, float (n // 2 + 1,)."""
    octaves = np.log2(np.maximum(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), 50.0) / 1000)
    return 10 ** (who.noise_slope_db * octaves / 20) * _microphone(who, n)


@lru_cache(maxsize=16)
def _telephone_band(n: int) -> np.ndarray:
    """Return the magnitude response of a telephone line, float (n // 2 + 1,)."""
    frequency = np.maximum(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), 1.0)
    low, high = _TELEPHONE_HZ
    return 1 / np.sqrt((1 + (low / frequency) ** 8) * (1 + (frequency / high) ** 24))


def _companded(clip: np.ndarray) -> np.ndarray:
    """Return a clip as 8-bit mu-law at 8 kHz leaves it, float (n,) at 16 kHz."""
    n = -(-len(clip) // _BLOCK) * _BLOCK
    half = np.fft.irfft(np.fft.rfft(clip, n)[: n // 4 + 1] / 2, n // 2)
    codes = np.rint(_LEVELS * np.log1p(_MU * np.minimum(np.abs(half), 1)) / np.log1p(_MU))
    half = np.sign(half) * np.expm1(codes / _LEVELS * np.log1p(_MU)) / _MU
    return np.clip(np.fft.irfft(2 * np.fft.rfft(half), n)[: len(clip)], -1, 1)


def _microphone(who: Speaker, n: int) -> np.ndarray:
    """Return the magnitude response of the microphone, float (n // 2 + 1,): a tilted band-pass."""
    frequency = np.maximum(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), 1.0)
    band = 1 / np.sqrt(
        (1 + (who.low_cut_hz / frequency) ** 4) * (1 + (frequency / who.high_cut_hz) ** 8)
    )
    return band * 10 ** (who.tilt_db * np.log2(np.maximum(frequency, 50.0) / 1000) / 20)
