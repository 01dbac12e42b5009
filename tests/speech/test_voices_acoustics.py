"""The acoustics of a recording, measured: level, noise, room, microphone, vocal tract, pauses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from voice_toys import PLAIN, RATE, TAKES, TEXT

from fedsim.speech.voices import Take, render
from fedsim.speech.voices.acoustics import record
from fedsim.speech.voices.sentences import WORD_SECONDS
from fedsim.speech.voices.speaker import speaker
from fedsim.speech.voices.synthesizer import SYNTHESIZER_RATE


def power_db(samples: np.ndarray) -> float:
    return 10 * np.log10(np.mean(np.square(samples, dtype=np.float64)))


def tone(seconds: float = 1.0, hertz: float = 1000.0) -> np.ndarray:
    """Return a tone as a synthesizer gives it; its first and last samples are loud."""
    time = np.arange(round(seconds * SYNTHESIZER_RATE)) / SYNTHESIZER_RATE
    return (8000 * np.sin(2 * np.pi * hertz * time + 1)).astype(np.int16)


def recorded(speech: np.ndarray, seed: int = 0, seconds: float = 0.0, **changes) -> np.ndarray:
    who = replace(PLAIN, **changes)
    return record(speech, who, np.random.default_rng(seed), seconds)


def spectrum(samples: np.ndarray, size: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Return frequencies in Hz and the mean power at each, after Welch."""
    starts = range(0, len(samples) - size + 1, size // 2)
    frames = np.array([samples[i : i + size] for i in starts], np.float64) * np.hanning(size)
    return np.fft.rfftfreq(size, 1 / RATE), np.square(np.abs(np.fft.rfft(frames))).mean(axis=0)


def hiss(**changes) -> tuple[np.ndarray, np.ndarray]:
    """Return the spectrum of half a minute of background noise."""
    clip = recorded(tone(0.1), 1, 30.0, level_db=-80.0, snr_db=-55.0, **changes)
    return spectrum(clip, 2048)


def test_samples_are_on_a_16_bit_grid():
    for take in TAKES:
        clip = render(take)
        assert (clip.dtype, clip.ndim) == (np.float32, 1)
        assert clip.flags.c_contiguous
        integers = clip.astype(np.float64) * 2**15
        np.testing.assert_array_equal(integers, np.rint(integers))
        assert np.abs(integers).max() < 2**15
        np.testing.assert_array_equal(
            integers.astype(np.int16).astype(np.float32) / 2**15, clip
        )  # as a 16-bit WAV gives it back


def test_too_loud_is_clipped_not_wrapped():
    clip = recorded(tone(), level_db=6.0)
    assert np.abs(clip).max() == np.float32(32_767 / 32_768)
    steps = np.abs(np.diff(clip))
    assert steps.max() < 1.2  # a wrapped sample would jump by 2


def test_the_rate_is_16_khz():
    clip = recorded(tone(2.0, 1000.0))
    frequency, power = spectrum(clip, 16_000)
    assert abs(frequency[power.argmax()] - 1000) <= 1
    loud = np.flatnonzero(np.abs(clip) > 0.01)
    assert (loud[-1] - loud[0]) / RATE == pytest.approx(2.0, abs=0.005)


def test_a_shorter_tract_moves_every_frequency():
    for tract in (0.9, 1.0, 1.12):
        frequency, power = spectrum(recorded(tone(2.0, 1000.0), tract=tract), 16_000)
        assert frequency[power.argmax()] == pytest.approx(1000 * tract, abs=2)


def test_the_level_of_the_speech():
    for level in (-35.0, -25.5, -16.0):
        clip = recorded(tone(), seconds=4.0, level_db=level)
        energy = np.square(clip, dtype=np.float64).sum() / RATE  # of a second of tone, and no noise
        assert 10 * np.log10(energy) == pytest.approx(level, abs=0.1)


def test_the_level_of_speakers():
    quiet, loud = (render(Take(replace(PLAIN, level_db=d), TEXT)) for d in (-35.0, -23.0))
    assert power_db(loud) - power_db(quiet) == pytest.approx(12, abs=0.1)
    for number in range(12):
        who = speaker("en", number)
        # Speech, without its pauses and with some noise: a few dB above what the clip has.
        assert who.level_db - 5 < power_db(render(Take(who, TEXT))) < who.level_db + 1


def test_the_noise_lies_so_far_below_the_speech():
    for snr in (10.0, 20.0, 40.0):
        for slope in (0.0, -6.0):
            clip = recorded(
                tone(),
                seconds=20.0,
                snr_db=snr,
                noise_slope_db=slope,
                low_cut_hz=100.0,
                level_db=-16.0,
            )
            energy = np.cumsum(np.square(clip, dtype=np.float64))
            loudest = (energy[RATE:] - energy[:-RATE]).argmax()
            pause = np.concatenate([clip[: loudest - 400], clip[loudest + RATE + 400 :]])
            assert len(pause) > 18 * RATE
            assert power_db(pause) == pytest.approx(-16 - snr, abs=0.5)


def test_a_speaker_has_its_noise():
    for number in range(6):
        who = speaker("en", number)
        clip = render(Take(who, TEXT, 0, 20.0))
        frames = [power_db(clip[i : i + 1600]) for i in range(0, len(clip) - 1600, 1600)]
        floor = np.median(frames)  # most of the clip is a pause
        assert floor == pytest.approx(who.level_db - who.snr_db, abs=1.5)


def test_the_slope_of_the_noise():
    for slope in (0.0, -3.0, -6.0):
        frequency, power = hiss(noise_slope_db=slope)
        band = (frequency > 200) & (frequency < 6000)
        fitted = np.polyfit(np.log2(frequency[band]), 10 * np.log10(power[band]), 1)[0]
        assert fitted == pytest.approx(slope, abs=0.3)


def test_the_slope_of_the_microphone():
    for tilt in (-2.0, 0.0, 2.0):
        frequency, power = hiss(tilt_db=tilt)
        band = (frequency > 200) & (frequency < 6000)
        fitted = np.polyfit(np.log2(frequency[band]), 10 * np.log10(power[band]), 1)[0]
        assert fitted == pytest.approx(tilt, abs=0.3)
        speech = [spectrum(render(Take(replace(PLAIN, tilt_db=t), TEXT))) for t in (0.0, tilt)]
        low, high = (np.argmin(np.abs(speech[0][0] - hertz)) for hertz in (500, 4000))
        moved = 10 * np.log10(speech[1][1] / speech[0][1])
        assert moved[high] - moved[low] == pytest.approx(3 * tilt, abs=0.5)


@pytest.mark.parametrize("cut", [80.0, 150.0, 250.0])
def test_the_low_cut(cut):
    """3 dB are lost at the cut, 12 more an octave below."""
    frequency, power = hiss(low_cut_hz=cut)
    middle = power[(frequency > 1000) & (frequency < 4000)].mean()

    def lost(hertz):
        return -10 * np.log10(power[np.abs(frequency - hertz) <= 8].mean() / middle)

    assert lost(cut) == pytest.approx(3, abs=1)
    assert lost(cut / 2) == pytest.approx(12.3, abs=2)
    assert lost(4 * cut) == pytest.approx(0, abs=0.7)


@pytest.mark.parametrize("cut", [4500.0, 6000.0, 7800.0])
def test_the_high_cut(cut):
    """3 dB are lost at the cut, and 24 an octave from there on."""
    frequency, power = hiss(high_cut_hz=cut)
    middle = power[(frequency > 500) & (frequency < 2000)].mean()

    def lost(hertz):
        return -10 * np.log10(power[np.abs(frequency - hertz) <= 60].mean() / middle)

    assert lost(cut) == pytest.approx(3, abs=0.7)
    assert lost(cut / 2) == pytest.approx(0, abs=0.5)
    if cut < 5000:
        assert lost(1.6 * cut) == pytest.approx(16.4, abs=1.5)


def test_the_band_of_speech():
    def share(low, high, **changes):
        frequency, power = spectrum(render(Take(replace(PLAIN, **changes), TEXT)))
        return power[(frequency >= low) & (frequency < high)].sum() / power.sum()

    assert share(0, 200, low_cut_hz=250.0) < 0.5 * share(0, 200, low_cut_hz=40.0)
    assert share(6000, 8000, high_cut_hz=4500.0) < 0.25 * share(6000, 8000, high_cut_hz=7800.0)


def centroid(clip: np.ndarray) -> float:
    frequency, power = spectrum(clip)
    return float((frequency * power).sum() / power.sum())


def test_a_shorter_tract_sounds_higher():
    for variant in ("f2", "steph", "m3", "rob"):
        clips = [
            render(Take(replace(PLAIN, variant=variant, tract=tract), TEXT))
            for tract in (0.9, 1.0, 1.12)
        ]
        low, middle, high = (centroid(clip) for clip in clips)
        assert low < middle < high
        assert 1.1 < high / low < 1.5  # 1.24 were all of it speech of one sound
        lengths = [len(clip) for clip in clips]
        assert max(lengths) < 1.12 * min(lengths)  # it is no slower for it


def decay(**changes) -> tuple[np.ndarray, int]:
    """Return the power of each sample of a clip with a click in it, and the click's place."""
    click = np.zeros(2000, np.int16)
    click[1000] = 32_000
    clip = recorded(click, seconds=3.0, level_db=-35.0, **changes)
    assert np.abs(clip).max() < 0.9
    return np.square(clip, dtype=np.float64), int(np.abs(clip).argmax())


def test_the_echo_falls_by_60_db_in_its_time():
    for seconds in (0.15, 0.3, 0.5):
        power, place = decay(reverberation_s=seconds, echo_db=0.0)
        after = np.trim_zeros(power[place + int(0.01 * RATE) : place + int(seconds * RATE)], "b")
        left = 10 * np.log10(np.cumsum(after[::-1])[::-1] / after.sum())  # after Schroeder
        fitted = slice(np.argmax(left < -3), np.argmax(left < -25))
        per_second = np.polyfit(np.arange(len(left))[fitted] / RATE, left[fitted], 1)[0]
        assert -60 / per_second == pytest.approx(seconds, rel=0.15)


def test_the_level_of_the_echo():
    for level in (-20.0, -8.0):
        power, place = decay(reverberation_s=0.4, echo_db=level)
        near = int(0.003 * RATE)
        direct, echo = power[: place + near].sum(), power[place + near :].sum()
        assert 10 * np.log10(echo / direct) == pytest.approx(level, abs=1)


def test_a_room_stays_the_same():
    """A speaker's echo is that of one room in every clip; another speaker has another room."""

    def echo(number, seed):
        click = np.zeros(2000, np.int16)
        click[1000] = 32_000
        room = {"reverberation_s": 0.3, "echo_db": -3.0, "level_db": -35.0, "number": number}
        clip = recorded(click, seed, 1.0 + seed, **room).astype(np.float64)
        place = np.abs(clip).argmax() + int(0.005 * RATE)
        return clip[place : place + int(0.2 * RATE)]

    assert np.corrcoef(echo(17, 1), echo(17, 2))[0, 1] > 0.99
    assert abs(np.corrcoef(echo(17, 1), echo(18, 1))[0, 1]) < 0.1


# --- how long a clip is


def test_a_clip_has_pauses_around_it():
    for seed in range(20):
        clip = recorded(tone(), seed)
        loud = np.flatnonzero(np.abs(clip) > 0.01)
        before, after = loud[0] / RATE, (len(clip) - 1 - loud[-1]) / RATE
        assert 0.049 < before < 0.251
        assert 0.049 < after < 0.251
        assert len(clip) / RATE == pytest.approx(1.0 + before + after, abs=0.001)


def test_pauses_are_widened_to_the_length_asked_for():
    for seconds in (1.9, 2.0, 3.37):
        begins = []
        for seed in range(30):
            clip = recorded(tone(), seed, seconds)
            assert len(clip) == round(seconds * RATE)
            begins.append(np.flatnonzero(np.abs(clip) > 0.01)[0] / RATE)
        missing = seconds - 1.0 - 0.3
        assert max(begins) - min(begins) > 0.6 * missing  # the speech is anywhere in it
        assert min(begins) > 0.04


def test_a_clip_is_never_cut_to_the_length_asked_for():
    for seconds in (0.01, 1.0, 1.09):
        clip, same = recorded(tone(), 3, seconds), recorded(tone(), 3)
        np.testing.assert_array_equal(clip, same)


def test_a_clip_of_one_word_lasts_a_second():
    for word in ("yes", "seven", "off", "marvin"):
        lengths = [len(render(Take(speaker("en", n), word, n, WORD_SECONDS))) for n in range(8)]
        assert min(lengths) == RATE
        assert lengths.count(RATE) >= 6  # a slow speaker may need longer, and gets it
        assert max(lengths) < 1.3 * RATE
        assert len(render(Take(speaker("en", 0), word))) < RATE
