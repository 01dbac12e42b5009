"""Background noises, synthesized: see `fedsim.scenario.place.NOISES`.

Each is f(n, place, rng) -> float (n,) at 16 kHz, of any level. `place` draws what one speaker hears
in every clip, `rng` what differs from clip to clip.
"""

from __future__ import annotations

import numpy as np

from fedsim.speech.audio import SAMPLE_RATE

_FRAME, _HOP = 2048, 1024  # of babble: 64 ms from frame to frame
_VOWELS_HZ = (
    *((730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010), (570, 840, 2410)),
    *((300, 870, 2240), (660, 1720, 2410), (490, 1350, 1690)),
)
"""First three formants, after Peterson and Barney (1952)."""
_SCALES = ((0, 2, 4, 7, 9), (0, 3, 5, 7, 10))  # pentatonic: major and minor, in semitones


def fan(n: int, place: np.random.Generator, rng: np.random.Generator) -> np.ndarray:
    """Return a steady rush, and the hum of the blades that beats with each turn."""
    hum_hz, blades = place.uniform(80, 170), int(place.integers(3, 8))
    rush = _coloured(n, place.uniform(-5, -2), rng)
    time = np.arange(n) / SAMPLE_RATE
    strengths = 0.6 ** np.arange(6) * place.uniform(0.5, 1, 6)
    hum = _harmonics(hum_hz * time + rng.random(), strengths)
    turning = 1 + 0.15 * np.sin(2 * np.pi * (hum_hz / blades * time + rng.random()))
    return (rush + place.uniform(0.3, 0.8) * _unit(hum)) * turning


def car(n: int, place: np.random.Generator, rng: np.random.Generator) -> np.ndarray:
    """Return a rumble, the engine, whose speed wanders a little, and the tyres."""
    firing_hz = place.uniform(50, 110)
    speed = firing_hz * (1 + 0.04 * _wander(n, 1.0, rng))
    engine = _harmonics(np.cumsum(speed) / SAMPLE_RATE, 0.7 ** np.arange(10))
    rumble = _coloured(n, place.uniform(-10, -7), rng)
    tyres = _coloured(n, -4, rng, peak_hz=place.uniform(600, 1100))
    return rumble + place.uniform(0.3, 0.9) * _unit(engine) + 0.15 * tyres


def street(n: int, place: np.random.Generator, rng: np.random.Generator) -> np.ndarray:
    """Return distant traffic, and vehicles that come near and pass, each within a second or two."""
    distant = _coloured(n, place.uniform(-6, -4), rng)
    near = _coloured(n, place.uniform(-7, -5), rng, peak_hz=place.uniform(500, 1200))
    time = np.arange(n) / SAMPLE_RATE
    passing = np.zeros(n)
    vehicles = 1 + rng.poisson(place.uniform(0.3, 0.8) * n / SAMPLE_RATE)
    for _ in range(vehicles):
        nearest, width = rng.uniform(0, time[-1]), rng.uniform(0.15, 0.5)
        # Pressure falls as one over the distance, which is that to a point beside the road.
        passing += rng.uniform(0.5, 1.5) / np.sqrt(1 + ((time - nearest) / width) ** 2) ** 2
    return distant + 2.5 * near * passing


def babble(n: int, place: np.random.Generator, rng: np.random.Generator) -> np.ndarray:
    """Return several voices that speak syllables of vowels and fricatives, no words.

    Each has a pitch and a vocal tract of its own, and pauses at times.
    """
    talkers = int(place.integers(5, 9))
    pitch, tract = place.uniform(90, 230, talkers), place.uniform(0.88, 1.15, talkers)
    loudness = 10 ** (place.uniform(-6, 0, talkers) / 20)
    frames = n // _HOP + 2
    length = (frames + 1) * _HOP
    total = np.zeros((frames, _FRAME // 2 + 1), np.complex128)
    window = np.hanning(_FRAME + 1)[:-1]
    for hz, factor, level in zip(pitch, tract, loudness, strict=True):
        lengths = rng.integers(2, 5, frames)  # of syllables, in frames
        syllable = np.repeat(np.arange(frames), lengths)[:frames]
        closes = np.diff(syllable, append=syllable[-1]) > 0
        sounds = rng.integers(len(_VOWELS_HZ) + 1, size=frames + 1)[syllable]  # the last: noise
        strength = rng.gamma(4.0, 0.25, frames + 1) * (rng.random(frames + 1) > 0.15)
        melody = hz * 2 ** (0.15 * _wander(length, 3.0, rng))
        voice = np.diff(np.floor(np.cumsum(melody) / SAMPLE_RATE), prepend=0)
        breath = 0.06 * rng.standard_normal(length)
        heard = np.where((sounds == len(_VOWELS_HZ)).repeat(_HOP), 2 * breath[:-_HOP], 0)
        heard = np.append(heard, np.zeros(_HOP)) + voice
        cut = np.lib.stride_tricks.sliding_window_view(heard, _FRAME)[::_HOP]
        envelope = level * strength[syllable] * np.where(closes, 0.1, 1.0)
        gain = envelope[:, None] * _tracts(factor)[sounds]
        total += np.fft.rfft(cut * window) * gain
    pieces = np.fft.irfft(total, _FRAME)
    sound = np.zeros(length)
    sound.reshape(-1, _HOP)[:-1] += pieces[:, :_HOP]
    sound.reshape(-1, _HOP)[1:] += pieces[:, _HOP:]
    return sound[_HOP : _HOP + n]


def music(n: int, place: np.random.Generator, rng: np.random.Generator) -> np.ndarray:
    """Return chords, a melody in a pentatonic scale, and a beat; each clip begins elsewhere."""
    root, scale = 45 + int(place.integers(12)), _SCALES[int(place.integers(2))]
    beat = round(60 / place.uniform(85, 150) * SAMPLE_RATE)
    strengths = place.uniform(0.35, 0.7) ** np.arange(6)
    sound = np.zeros(n + 4 * beat)
    drum = rng.standard_normal(beat // 2) * np.exp(-np.arange(beat // 2) / 400)
    for i, start in enumerate(range(int(rng.integers(beat)), n + 3 * beat, beat // 2)):
        steps = [24 + scale[int(rng.integers(5))]] if rng.random() < 0.75 else []
        if i % 4 == 0:  # a chord on every other beat
            low = scale[int(rng.integers(5))]
            steps += [low, low + 7, low + 12]
        for step in steps:
            _add(sound, start, _note(root + step, 2 * beat, strengths))
        if i % 2 == 0:
            _add(sound, start, 0.5 * drum)
    return sound[2 * beat : 2 * beat + n] + 1e-3 * rng.standard_normal(n)


def _note(midi: int, n: int, strengths: np.ndarray) -> np.ndarray:
    """Return a plucked note, whose number is that of MIDI: 69 is 440 Hz."""
    time = np.arange(n) / SAMPLE_RATE
    hz = 440 * 2 ** ((midi - 69) / 12)
    return _harmonics(hz * time, strengths) * np.exp(-4 * time) * np.minimum(1, 100 * time)


def _add(sound: np.ndarray, start: int, part: np.ndarray) -> None:
    end = min(len(sound), start + len(part))
    sound[start:end] += part[: end - start]


def _harmonics(turns: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Return a sum of sines, of which the first has gone through so many turns, float (n,)."""
    orders = range(1, len(strengths) + 1)
    return sum(
        (s * np.sin(2 * np.pi * k * turns) for k, s in zip(orders, strengths, strict=True)),
        np.zeros(len(turns)),
    )


def _coloured(
    n: int, slope_db: float, rng: np.random.Generator, peak_hz: float | None = None
) -> np.ndarray:
    """Return noise of unit power that falls by `slope_db` an octave, from a peak on if given."""
    hertz = np.maximum(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), 30.0)
    shape = 10 ** (slope_db * np.log2(hertz / 1000) / 20)
    if peak_hz is not None:
        shape *= (hertz / peak_hz) ** 2 / (1 + (hertz / peak_hz) ** 2)
    return _unit(np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) * shape, n))


def _wander(n: int, hertz: float, rng: np.random.Generator) -> np.ndarray:
    """Return a curve through normal numbers, `hertz` of them a second, float (n,)."""
    knots = int(n / SAMPLE_RATE * hertz) + 3
    return np.interp(np.arange(n) / SAMPLE_RATE * hertz, np.arange(knots), rng.normal(size=knots))


def _unit(sound: np.ndarray) -> np.ndarray:
    return sound / np.sqrt(np.mean(np.square(sound)))


def _tracts(factor: float) -> np.ndarray:
    """Return the gains of each vowel and of a fricative, float (vowels + 1, frequencies)."""
    hertz = np.maximum(np.fft.rfftfreq(_FRAME, 1 / SAMPLE_RATE), 60.0)
    formants = factor * np.array(_VOWELS_HZ)[:, :, None]
    widths, strengths = np.array([80.0, 110.0, 160.0]), np.array([1.0, 0.5, 0.25])
    peaks = strengths[:, None] / np.sqrt(1 + ((hertz - formants) / widths[:, None]) ** 2)
    vowels = peaks.sum(axis=1) / np.sqrt(1 + (hertz / 500) ** 2)
    fricative = 0.02 / np.sqrt(1 + (3000 * factor / hertz) ** 4)
    return np.vstack([vowels, fricative])
