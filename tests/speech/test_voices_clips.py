"""Recordings of synthetic speakers: always the same samples, with the acoustics of each speaker."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest

from fedsim.errors import AudioError, FedsimError
from fedsim.speech.clips import Utterance, read_utterance
from fedsim.speech.voices import Take, render
from fedsim.speech.voices.acoustics import record
from fedsim.speech.voices.sentences import WORD_SECONDS, WORDS
from fedsim.speech.voices.speaker import ACCENTS, VARIANTS, speaker
from fedsim.speech.voices.synthesizer import SYNTHESIZER_RATE, synthesize

RATE = 16_000
TEXT = "turn on the lamp in the living room"
LONG = "the answer is " + ", ".join(f"{word} and {word} again" for word in WORDS)
TAKES = [
    Take(speaker("en", 17), TEXT),
    Take(speaker("en", 17), "yes", 3, WORD_SECONDS),
    Take(speaker("ja", 4), "でんき つけて"),
    Take(speaker("ru", 999_999), "включи свет на кухне", 1_000_007),
]
PLAIN = replace(
    speaker("en", 17),
    tract=1.0,
    low_cut_hz=1.0,
    high_cut_hz=16_000.0,
    tilt_db=0.0,
    echo_db=-90.0,
    snr_db=90.0,
    noise_slope_db=0.0,
    level_db=-20.0,
)
"""A speaker whose room and microphone change nothing that could be heard."""


def digests(takes) -> list[str]:
    return [hashlib.sha256(render(take).tobytes()).hexdigest() for take in takes]


_RENDER = """
import json, sys
sys.path.insert(0, {tests!r})
from test_voices_clips import TAKES, digests
print(json.dumps(digests(TAKES[::{step}])[::{step}]))
"""


def in_another_process(code: str, **environment: str) -> str:
    path = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout


@pytest.mark.parametrize(("seed", "step"), [("1", 1), ("2", -1)])
def test_clips_are_the_same_in_another_process(seed, step):
    """Whatever its hashes, and whichever clip comes first in it."""
    code = _RENDER.format(tests=os.path.dirname(__file__), step=step)
    assert json.loads(in_another_process(code, PYTHONHASHSEED=seed)) == digests(TAKES)


_FORK = """
import json, os, sys
sys.path.insert(0, {tests!r})
from test_voices_clips import TAKES, digests
before = digests(TAKES[:1])
if os.fork() == 0:
    print(json.dumps(digests(TAKES[:1]) == before), flush=True)
    os._exit(0)
os.wait()
"""


def test_a_fork_speaks_as_what_it_was_forked_from():
    """As the workers of a data loader do; threads are not forked."""
    code = _FORK.format(tests=os.path.dirname(__file__))
    assert in_another_process(code, OMP_NUM_THREADS="1") == "true\n"


def test_a_clip_does_not_depend_on_what_was_rendered_before():
    before = digests(TAKES)
    for number, language in enumerate(ACCENTS):
        render(Take(speaker(language, number), "one two three"))
        assert digests(TAKES[:1]) == before[:1]
    for variant in [*VARIANTS["female"], *VARIANTS["male"]]:
        render(Take(replace(PLAIN, variant=variant), "seven"))
    assert digests(TAKES) == before
    render(Take(speaker("en", 3), LONG))
    assert digests(TAKES) == before
    render(TAKES[0])  # not even on itself
    with pytest.raises(FedsimError, match="no voice 'xx'; choose another"):
        synthesize("one", "xx", rate=150, pitch=50, pitch_range=50)
    with pytest.raises(AudioError):
        render(Take(PLAIN, "..."))
    assert digests(TAKES[::-1]) == before[::-1]


def test_what_is_synthesized_does_not_depend_on_what_was_before():
    """Noise and pauses could hide a difference of the voice that is smaller than they are."""
    voice = {"rate": 150, "pitch": 50, "pitch_range": 50}
    before = [synthesize(TEXT, f"en+{v}", **voice).samples for v in ("f2", "m3", "steph")]
    synthesize(LONG, "de+m1", rate=190, pitch=20, pitch_range=90)
    for variant, samples in zip(("steph", "m3", "f2"), before[::-1], strict=True):
        np.testing.assert_array_equal(synthesize(TEXT, f"en+{variant}", **voice).samples, samples)


def test_threads_render_the_same_clips():
    takes = [Take(speaker("en", number), TEXT) for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda take: digests([take])[0], takes * 2))
    assert together == digests(takes) * 2


def test_a_take_travels_to_a_worker():
    copies = [pickle.loads(pickle.dumps(take)) for take in TAKES]
    assert copies == TAKES
    assert digests(copies) == digests(TAKES)


def test_an_utterance_of_a_voice_is_rendered():
    clip = read_utterance(Utterance("en-000017/test-0000", TAKES[0]))
    np.testing.assert_array_equal(clip, render(TAKES[0]))


def test_no_two_takes_are_the_same():
    who = speaker("en", 17)
    takes = [Take(who, TEXT, number) for number in range(12)]
    takes += [Take(who, text) for text in ("yes", "no", "turn on the lamp in the living rooms")]
    takes += [Take(replace(who, number=n), TEXT) for n in (16, 18)]
    takes += [Take(replace(who, variant=v), TEXT) for v in ("m1", "steph")]
    clips = [render(take) for take in takes]
    assert len({clip.tobytes() for clip in clips}) == len(takes)
    lengths = {len(clip) for clip in clips[:12]}
    assert len(lengths) > 6  # faster or slower, with other pauses
    assert max(lengths) < 1.5 * min(lengths)


def test_every_accent_and_variant_speaks():
    for language in ACCENTS:
        variants = [v for names in VARIANTS.values() for v in names]
        for accent in ACCENTS[language]:
            speech = {}
            for variant in variants:
                spoken = synthesize(
                    "a o", f"{accent}+{variant}", rate=200, pitch=50, pitch_range=50
                )
                speech[variant] = spoken.samples
                assert 0.1 < len(spoken.samples) / SYNTHESIZER_RATE < 4, (accent, variant)
                assert np.abs(spoken.samples.astype(float)).max() > 3000, (accent, variant)
            # A variant that is not found is quietly spoken by the accent's own voice.
            speech[""] = synthesize("a o", accent, rate=200, pitch=50, pitch_range=50).samples
            assert len({samples.tobytes() for samples in speech.values()}) == len(variants) + 1, (
                accent
            )


def test_words_are_found_in_what_was_said():
    speech = synthesize("one two three", "en+f2", rate=120, pitch=50, pitch_range=50)
    assert speech.samples.dtype == np.int16
    assert len(speech.word_starts) == 3
    assert list(speech.word_starts) == sorted(speech.word_starts)
    assert 0 <= speech.word_starts[0] < speech.word_starts[-1] < len(speech.samples)


def test_faster_is_shorter():
    lengths = [
        len(synthesize(TEXT, "en+f2", rate=rate, pitch=50, pitch_range=50).samples)
        for rate in (120, 160, 200)
    ]
    for slower, faster in pairwise(lengths):
        assert faster < 0.9 * slower


# --- acoustics, measured


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


# --- bad input


def test_a_text_that_the_voice_stays_silent_on():
    for text in ("", "  ", "...", "\U0001d7d9"):
        with pytest.raises(AudioError) as caught:
            render(Take(speaker("ru", 1), text))
        assert str(caught.value) == (f"ru-000001 cannot say {text!r}: the synthesizer stays silent")


_NOT_INSTALLED = """
import sys
sys.path.insert(0, {tests!r})
from test_voices_clips import TAKES, render
sys.modules["espeakng_loader"] = None
from fedsim.errors import FedsimError
from fedsim.speech.voices.synthesizer import require_synthesizer
for use in (require_synthesizer, lambda: render(TAKES[0])):
    try:
        use()
    except FedsimError as error:
        print(error)
del sys.modules["espeakng_loader"]
require_synthesizer()
"""


def test_the_synthesizer_is_not_installed():
    """Opening a corpus and rendering say how to install it; the failure is not remembered."""
    printed = in_another_process(_NOT_INSTALLED.format(tests=os.path.dirname(__file__)))
    first, second = printed.splitlines()
    assert first == second
    assert first.endswith("pip install 'fedsim-speech[voices]'")


_HELD = """
import ctypes, espeakng_loader
held = ctypes.CDLL(espeakng_loader.get_library_path())
from fedsim.errors import FedsimError
from fedsim.speech.voices.synthesizer import require_synthesizer
try:
    require_synthesizer()
except FedsimError as error:
    print(error)
"""


def test_a_synthesizer_that_others_hold_is_refused():
    """It would keep its state, and a clip would differ from run to run."""
    printed = in_another_process(_HELD)
    assert "do not load eSpeak NG in this process by other means" in printed
    assert printed.count("\n") == 1


def assert_unloaded():
    with pytest.raises(OSError, match=r"."):
        ctypes.CDLL(espeakng_loader.get_library_path(), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)


def test_nothing_of_the_synthesizer_stays_loaded():
    render(TAKES[0])
    assert_unloaded()


def test_an_interrupt_at_any_moment_is_neither_lost_nor_remembered():
    """Also as eSpeak calls back, where ctypes would swallow it, and as it is loaded."""

    def ring(*_):
        rang.append(True)
        raise KeyboardInterrupt

    def say() -> bytes:
        how = {"rate": 170, "pitch": 50, "pitch_range": 50}
        return synthesize("one two three", "en-us", **how).samples.tobytes()

    speech, rang = say(), []
    lost, changed, before = 0, 0, signal.signal(signal.SIGALRM, ring)
    try:
        for moment in np.linspace(0.0001, 0.006, 240):
            rang.clear()
            try:
                signal.setitimer(signal.ITIMER_REAL, moment)
                say()
                lost += bool(rang)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                pass
            changed += say() != speech
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (lost, changed) == (0, 0)
    assert_unloaded()
