"""One recording under two names, references without a word, and client keys."""

from __future__ import annotations

import os

import numpy as np
import pytest
import soundfile

from fedsim.errors import AudioError, FedsimError
from fedsim.scenario.clients import ClientSettings
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.audio import check_clip, clip_seconds, read_clip
from fedsim.speech.corpus import open_clients
from fedsim.speech.eligible import require_clips
from fedsim.speech.wordless import wordless_line


@pytest.fixture
def corpus(tmp_path):
    """Return a function that writes recordings and a table, and opens them."""

    def make(rows, recordings, **options):
        for name, seed in recordings.items():
            samples = np.random.default_rng(seed).normal(0, 0.1, 16_000)
            soundfile.write(tmp_path / name, samples, 16_000)
        table = "\n".join(["file_name,speaker,text", *rows]) + "\n"
        (tmp_path / "metadata.csv").write_text(table, encoding="utf-8")
        settings = CorpusSettings(
            path=str(tmp_path), group_by="speaker", test_clips=1, tuning_clips=9, **options
        )
        return settings, open_clients(settings, ClientSettings(), 0)

    return make


def test_a_path_is_compared_normalised(corpus):
    for other in ("./1.wav", "a/../1.wav", ".//1.wav"):
        with pytest.raises(FedsimError, match=r"metadata.csv:3: .* is listed twice, above as '1.w"):
            corpus([f"{name},ann,yes" for name in ("1.wav", other)], {"1.wav": 1})


def test_one_recording_under_two_names(corpus):
    names = {"1.wav": 1, "2.wav": 2, "copy.wav": 1}
    rows = [f"{name},ann,yes" for name in names]
    settings, clients = corpus(rows, names)
    words = r"client 'ann': clips .*(1|copy).wav and .*(1|copy).wav have the same content"
    with pytest.raises(FedsimError, match=words):
        require_clips(clients["ann"], settings)
    settings, clients = corpus(rows, names, duplicates="keep")
    require_clips(clients["ann"], settings)
    settings, clients = corpus(rows[:2], names)  # equal in size, different in content
    require_clips(clients["ann"], settings)


@pytest.mark.parametrize(
    "copy", [("copy.flac", {}), ("copy.wav", {"subtype": "FLOAT"}), ("copy.ogg", {})]
)
def test_one_recording_in_two_encodings(corpus, tmp_path, copy):
    names = {"1.wav": 1, "2.wav": 2, "3.wav": 3}
    settings, clients = corpus([f"{name},ann,yes" for name in (*names, copy[0])], names)
    # Speech-like: a lossy encoder keeps little of white noise.
    samples = np.cumsum(np.random.default_rng(3).normal(0, 0.01, 16_000)) * 0.5
    samples = (samples - samples.mean()) / np.abs(samples).max() * 0.3
    soundfile.write(tmp_path / "3.wav", samples, 16_000)
    soundfile.write(tmp_path / copy[0], samples, 16_000, **copy[1])
    words = r"client 'ann': clips .*(3|copy)\.\w+ and .*(3|copy)\.\w+ have the same content"
    with pytest.raises(FedsimError, match=words):
        require_clips(clients["ann"], settings)
    other = np.random.default_rng(4).normal(0, 0.1, 16_000)
    soundfile.write(tmp_path / copy[0], other, 16_000, **copy[1])
    require_clips(clients["ann"], settings)  # as long, in another encoding, and another recording
    soundfile.write(tmp_path / copy[0], 0 * other, 16_000, **copy[1])
    require_clips(clients["ann"], settings)


def test_references_without_a_word_are_counted_apart(corpus):
    settings, clients = corpus(
        ["1.wav,ann,...", "2.wav,bob,yes", "3.wav,bob,no"], {"1.wav": 1, "2.wav": 2, "3.wav": 3}
    )
    assert clients["ann"].test == ()
    assert clients["ann"].wordless == ("1.wav",)
    assert [u.text for u in clients["bob"].test] in (["yes"], ["no"])
    with pytest.raises(FedsimError, match="no reference of its 1 test clips has a word"):
        require_clips(clients["ann"], settings)
    assert wordless_line(clients) == (
        "not scored: 1 reference without a word once normalized, of ann (1)"
    )


def test_keys_that_are_equal_once_composed_are_one_client(corpus):
    _, clients = corpus(["1.wav,e\u0301,yes", "2.wav,\u00e9,no"], {"1.wav": 1, "2.wav": 2})
    assert list(clients) == ["\u00e9"]
    assert len(clients["\u00e9"].tuning) + len(clients["\u00e9"].test) == 2


def test_keys_that_are_no_names(corpus):
    for key, words in (("x" * 201, "201 characters"), ("a\x1bb", "a control character")):
        with pytest.raises(FedsimError, match=words):
            corpus([f"1.wav,{key},yes"], {"1.wav": 1})


def test_clips_that_are_no_recordings(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (lambda p: read_clip(p, "pipe"), clip_seconds):
        with pytest.raises(AudioError, match="a named pipe"):
            read(tmp_path / "pipe")
    for rate in (3_999, 192_001):
        soundfile.write(tmp_path / "a.wav", np.zeros(rate), rate)
        with pytest.raises(AudioError, match=r"which no recording has: .* 4,000 to 192,000 Hz"):
            read_clip(tmp_path / "a.wav", "a.wav", convert=True)
    for rate in (4_000, 192_000):
        soundfile.write(tmp_path / "a.wav", np.zeros(rate), rate)
        assert read_clip(tmp_path / "a.wav", "a.wav", convert=True).shape == (16_000,)


def test_samples_that_float32_does_not_hold(tmp_path):
    with pytest.raises(AudioError, match=r"a sample of 1e\+300; scale samples"):
        check_clip(np.full(16_000, 1e300), "x")
    soundfile.write(tmp_path / "a.wav", np.full(16_000, 1e300), 16_000, subtype="DOUBLE")
    with pytest.raises(AudioError, match="NaN or infinite"):
        read_clip(tmp_path / "a.wav", "a.wav")
    assert check_clip(np.full(16_000, 32_768.0), "x").dtype == np.float32
