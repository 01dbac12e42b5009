"""The broad public set: reserved voices in many places, or the clips of a corpus."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import soundfile
from voice_toys import RATE, clients, corpus, takes

from fedsim.errors import FedsimError
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.clips import read_utterance
from fedsim.speech.public import (
    PUBLIC_CLIPS,
    public_request,
    public_set,
    public_takes,
)
from fedsim.speech.public_set import PublicClip, public_set_of
from fedsim.speech.voices.sentences import WORDS, role_of
from fedsim.speech.voices.speaker import (
    ACCENTS,
    FIRST_BROAD_SPEAKER,
    FIRST_PUBLIC_SPEAKER,
    FIRST_TRAINING_SPEAKER,
)

FIVE = ("en", "it", "es", "fr", "ru")


def kind_of(take) -> str:
    scene = take.scene
    if scene.noise is not None:
        return scene.noise
    return "telephone" if scene.telephone else "quiet" if scene.echo_db is None else "far"


@pytest.mark.parametrize("languages", [("en",), FIVE])
def test_the_set_is_broad(languages):
    found = list(public_takes(public_request(languages)))
    assert len(found) == PUBLIC_CLIPS == 128
    per_language = Counter(take.speaker.language for take in found)
    assert set(per_language) == set(languages)
    assert max(per_language.values()) - min(per_language.values()) <= 1
    assert len({take.speaker.key for take in found}) == 128
    for language in languages:
        mine = [take for take in found if take.speaker.language == language]
        genders = Counter(take.speaker.gender for take in mine)
        assert abs(genders["female"] - genders["male"]) <= 1
        assert {take.speaker.accent for take in mine} == set(ACCENTS[language])
    kinds = Counter(map(kind_of, found))
    assert kinds["quiet"] == 32
    others = {kind: n for kind, n in kinds.items() if kind != "quiet"}
    assert others.keys() == {"babble", "street", "car", "fan", "music", "telephone", "far"}
    assert min(others.values()) >= 12
    levels = [take.scene.snr_db for take in found if take.scene.noise]
    assert 0 <= min(levels) < 2
    assert 18 < max(levels) <= 20


def test_nobody_else_is_in_it_and_nobody_is_tested_on_it():
    found = list(public_takes(public_request(FIVE, n_clips=400)))
    numbers = [take.speaker.number for take in found]
    assert FIRST_PUBLIC_SPEAKER + 10_000 < FIRST_BROAD_SPEAKER <= min(numbers)
    assert max(numbers) < FIRST_TRAINING_SPEAKER
    assert {role_of(take.text) for take in found} == {"tuning"}


def test_more_clips_begin_with_the_same():
    few, many = (list(public_takes(public_request(FIVE, n_clips=n))) for n in (9, 60))
    assert few == many[:9]
    assert len({kind_of(take) for take in public_takes(public_request(n_clips=8))}) >= 6


def test_words_and_topics():
    words = list(public_takes(public_request(("en",), ("words",), n_clips=70)))
    assert Counter(take.text for take in words) == dict.fromkeys(WORDS, 2)
    music = list(public_takes(public_request(("en",), ("timers",), n_clips=90)))
    assert all("timer" in t.text or "{" not in t.text for t in music)
    assert len({take.text for take in music}) > 60
    mixed = list(public_takes(public_request(("en", "it"), ("words",), n_clips=6)))
    assert {take.text for take in mixed if take.speaker.language == "en"} <= set(WORDS)
    assert all(" " in take.text for take in mixed if take.speaker.language == "it")


_KEY = """
from fedsim.speech.public import public_request, public_set
print(public_set(public_request(("it", "en"), n_clips=10)).key)
"""


def test_the_set_is_the_same_in_another_process():
    found = public_set(public_request(("it", "en"), n_clips=10))
    assert [public.language for public in found.clips] == ["it", "en"] * 5
    for public in found.clips:
        assert (public.clip.dtype, public.clip.ndim) == (np.float32, 1)
        assert RATE / 2 < len(public.clip) < 12 * RATE
    printed = subprocess.run(
        [sys.executable, "-c", _KEY],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    assert printed.strip() == found.key


def test_the_key_is_that_of_the_content():
    def key(*clips):
        return public_set_of(PublicClip(np.array(c, np.float32), lang) for c, lang in clips).key

    base = (([0.5, 0.25], "en"), ([0.125], "it"))
    keys = [
        key(*base),
        key(*base[::-1]),
        key(base[0]),
        key(([0.5, 0.25], None), base[1]),
        key(([0.5, 0.25], "-"), base[1]),
        key(([0.5], "en"), ([0.25, 0.125], "it")),
        key(([0.5, 0.5], "en"), base[1]),
    ]
    assert len(set(keys)) == len(keys)
    assert key(*base) == keys[0]


# --- any corpus in its place


def test_clips_of_a_corpus_are_dealt_round_its_clients():
    settings = corpus(speakers=3, tuning=4, test=1, languages=["en", "fr"])
    by_hand = clients(settings)
    expected = [by_hand[key].tuning[i] for i in range(3) for key in by_hand][:7]
    found = public_set(public_request(n_clips=7, corpus=settings))
    assert [public.language for public in found.clips] == [u.language for u in expected]
    for public, utterance in zip(found.clips, expected, strict=True):
        np.testing.assert_array_equal(public.clip, read_utterance(utterance))
    assert len(public_set(public_request(n_clips=500, corpus=settings)).clips) == 12
    assert len(takes(by_hand, "tuning")) == 12


def test_a_folder_of_recordings(tmp_path):
    rows = ["file_name,text,speaker,language"]
    for i in range(6):
        samples = np.full(RATE, (i + 1) / 64, np.float32)
        soundfile.write(tmp_path / f"{i}.wav", samples, RATE, subtype="PCM_16")
        rows.append(f"{i}.wav,text {i},{'ab'[i % 2]},it")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    settings = CorpusSettings(path=str(tmp_path), group_by="speaker", test_clips=1)
    found = public_set(public_request(corpus=settings))
    assert [public.language for public in found.clips] == ["it"] * 4
    levels = [round(float(public.clip[0]) * 64) - 1 for public in found.clips]
    assert [level % 2 for level in levels] == [0, 1, 0, 1]
    with pytest.raises(FedsimError, match="no speaker has a tuning clip; add recordings or lower"):
        public_set(public_request(corpus=settings.model_copy(update={"test_clips": 9})))


# --- bad input


def test_a_request_that_cannot_be_met():
    with pytest.raises(FedsimError, match="0 public clips: ask for at least 1"):
        public_request(n_clips=0)
    with pytest.raises(FedsimError, match="no language: name at least one"):
        public_request(())
    with pytest.raises(
        FedsimError, match=r"no voice speaks 'hi', .* give quantization.public_clip"
    ):
        public_set(public_request(("en", "hi")))
    with pytest.raises(FedsimError, match="there is no topic 'musik': did you mean 'music'"):
        public_set(public_request(("en",), ("musik",), n_clips=1))


_MISSING = """
import sys
sys.modules["espeakng_loader"] = None
from fedsim.errors import FedsimError
from fedsim.speech.public import public_request, public_set
try:
    public_set(public_request())
except FedsimError as error:
    print(error)
"""


def test_the_synthesizer_is_not_installed():
    printed = subprocess.run(
        [sys.executable, "-c", _MISSING],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    assert printed == (
        "public clips need the speech synthesizer: pip install 'fedsim-speech[voices]', or give"
        " quantization.public_clips, a corpus of your own\n"
    )


def test_clips_longer_than_a_window_are_cut():
    long, short = (np.full(n, 0.25, np.float32) for n in (3 * RATE, RATE))
    whole = public_set_of([PublicClip(long, "it"), PublicClip(short, None)])
    cut = whole.within(2.0)
    assert [len(public.clip) for public in cut.clips] == [2 * RATE, RATE]
    assert [public.language for public in cut.clips] == ["it", None]
    assert whole.within(3.0).key == whole.key != cut.key
