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
from voice_toys import PLAIN, TAKES, TEXT

from fedsim.errors import AudioError, FedsimError
from fedsim.speech.clips import Utterance, read_utterance
from fedsim.speech.voices import Take, render
from fedsim.speech.voices.sentences import WORDS
from fedsim.speech.voices.speaker import ACCENTS, VARIANTS, speaker
from fedsim.speech.voices.synthesizer import SYNTHESIZER_RATE, synthesize

LONG = "the answer is " + ", ".join(f"{word} and {word} again" for word in WORDS)


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
        for moment in np.linspace(0.0001, 0.006, 120):
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
