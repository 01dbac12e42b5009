"""Reading clips: for each that cannot be used an error with its name, the mistake and a remedy."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import toys

from fedsim.errors import AudioError
from fedsim.speech.audio import check_clip, clip_seconds, read_clip

GOOD = toys.clip(0.5)


@pytest.fixture
def written(tmp_path):
    def write(samples, rate=16_000, name="clip.wav", subtype="FLOAT") -> Path:
        toys.write_wav(tmp_path / name, np.asarray(samples), rate, subtype)
        return tmp_path / name

    return write


def tone(hertz, rate, seconds=0.5):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype("f4")


def test_a_good_clip_comes_back_as_it_is(written):
    path = written(GOOD)
    for source in (path, path.read_bytes()):
        clip = read_clip(source, "clip")
        assert clip.dtype == np.float32
        assert clip.flags.c_contiguous
        np.testing.assert_array_equal(clip, GOOD)
    assert clip_seconds(path) == clip_seconds(path.read_bytes()) == 0.5


def test_integers_in_a_file_become_floats(written):
    for subtype, step in (("PCM_16", 2**-15), ("PCM_24", 2**-23)):
        clip = read_clip(written(GOOD, subtype=subtype), "clip")
        assert clip.dtype == np.float32
        np.testing.assert_allclose(clip, GOOD, atol=1.01 * step)


def test_flac_and_ogg_are_read(tmp_path):
    for name in ("a.flac", "a.ogg"):
        soundfile.write(tmp_path / name, tone(440, 16_000), 16_000)
        assert read_clip(tmp_path / name, "clip").shape == (8000,)


def nan_at(*places):
    clip = GOOD.copy()
    clip[list(places)] = np.nan
    return clip


@pytest.mark.parametrize(
    ("samples", "rate", "sentence"),
    [
        (GOOD[:0], 16_000, "audio file ann/1.wav is empty; leave it out"),
        (
            nan_at(3, 77),
            16_000,
            "audio file ann/1.wav holds 2 samples that are NaN or infinite; leave it out",
        ),
        (
            np.where(np.arange(8000) == 9, -np.inf, GOOD),
            16_000,
            "audio file ann/1.wav holds 1 samples that are NaN or infinite; leave it out",
        ),
        (
            np.stack([GOOD, GOOD], axis=1),
            16_000,
            "audio file ann/1.wav has 2 channels; mix it down to one, or set corpus.convert: true",
        ),
        (
            GOOD,
            8_000,
            "audio file ann/1.wav has a rate of 8,000 Hz; resample it to 16,000 Hz, or set "
            "corpus.convert: true",
        ),
        (
            GOOD[:160],
            16_000,
            "audio file ann/1.wav lasts 0.01 s; the shortest usable clip is 0.1 s (1,600 samples "
            "at 16 kHz)",
        ),
    ],
)
def test_a_bad_file(written, samples, rate, sentence):
    path = written(samples, rate)
    for source in (path, path.read_bytes()):
        with pytest.raises(AudioError) as caught:
            read_clip(source, "ann/1.wav")
        assert str(caught.value) == sentence


def test_a_missing_file(tmp_path):
    with pytest.raises(AudioError, match=r"ann/1.wav is missing; check file_name"):
        read_clip(tmp_path / "1.wav", "ann/1.wav")
    with pytest.raises(AudioError, match="this is a folder"):
        read_clip(tmp_path, "a folder")


def test_an_unreadable_file(tmp_path):
    for content in (b"", b"RIFF", b"no audio at all" * 100):
        path = tmp_path / "1.wav"
        path.write_bytes(content)
        for source in (path, content):
            with pytest.raises(
                AudioError, match=r"ann/1.wav cannot be read \(.+\); replace it or remove it from"
            ) as caught:
                read_clip(source, "ann/1.wav")
            assert "\n" not in str(caught.value)
            with pytest.raises(AudioError, match=r"header.*; replace it"):
                clip_seconds(source)


def test_an_error_has_the_same_text_every_time():
    """Failures are compared between engines: no address of an object may be in them."""
    sentences = set()
    kept = []
    for _ in range(3):
        kept.append(io.BytesIO(b"x"))  # so that the next one lies elsewhere
        with pytest.raises(AudioError) as caught:
            read_clip(b"no audio", "1.wav")
        sentences.add(str(caught.value))
    assert "0x" not in sentences.pop()
    assert not sentences


def cut(path, share):
    """Cut off the end of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


CONTAINERS = ("wav", "rf64", "w64", "aiff", "au", "caf", "flac", "mp3")


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_a_file_that_is_cut_off(tmp_path, kind, share):
    """libsndfile reads what is left of most of them as a shorter clip, without a word."""
    path = tmp_path / f"clip.{kind}"
    soundfile.write(path, toys.clip(2.0), 16_000, format=kind)
    read_clip(path, "clip")
    for source in (cut(path, share), path.read_bytes()):
        with pytest.raises(
            AudioError, match=r"^audio file ann/1 (is cut off: its header|cannot be read)"
        ):
            read_clip(source, "ann/1")


def test_what_the_header_promises_is_named(written):
    path = written(GOOD)
    path.write_bytes(path.read_bytes()[:-9000])
    with pytest.raises(AudioError) as caught:
        read_clip(path, "clip")
    assert str(caught.value) == (
        "audio file clip is cut off: its header promises 32,000 bytes of samples and the file has "
        "23,000; copy it again, or leave it out"
    )


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_F000])
def test_a_length_that_was_not_known(written, size):
    """ffmpeg and sox write such headers into a pipe: they promise nothing."""
    path = written(GOOD, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert read_clip(path, "clip").shape == GOOD.shape


def test_chunks_after_the_samples_and_padding_are_none_of_them(written):
    path = written(GOOD[:-1], subtype="PCM_16")
    path.write_bytes(path.read_bytes() + b"LIST\x04\x00\x00\x00INFO")
    assert read_clip(path, "clip").shape == (7999,)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_a_part_of_a_recording(tmp_path, kind):
    """The samples are those of the whole, from begin to end."""
    path = tmp_path / f"clip.{kind}"
    soundfile.write(path, toys.clip(3.0), 16_000)
    whole, _ = soundfile.read(path, dtype="float32")
    for source in (path, path.read_bytes()):
        part = read_clip(source, "clip", begin=1.25, end=2.0)
        assert part.shape == (12_000,)
        np.testing.assert_allclose(part, whole[20_000:32_000], atol=1e-6)
        np.testing.assert_allclose(read_clip(source, "x", begin=2.5), whole[40_000:], atol=1e-6)
        np.testing.assert_allclose(read_clip(source, "x", end=0.5), whole[:8_000], atol=1e-6)
    # Tables round: a clip may end a little later than its recording.
    assert read_clip(path, "clip", begin=2.0, end=3.09).shape == (16_000,)
    for begin, end in ((2.0, 3.2), (3.0, None), (4.0, 5.0)):
        with pytest.raises(AudioError, match=r"file clip lasts 3.000 s, and a clip begins at"):
            read_clip(path, "clip", begin=begin, end=end)


def test_a_part_is_cut_before_it_is_resampled(written):
    path = written(tone(440, 8_000, 2.0), 8_000)
    expected = soxr.resample(tone(440, 8_000, 2.0)[4_000:12_000], 8_000, 16_000)
    part = read_clip(path, "clip", begin=0.5, end=1.5, convert=True)
    np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize(
    ("clip", "sentence"),
    [
        (np.zeros(0, np.float32), "clip 3 is empty; leave it out"),
        (nan_at(0), "clip 3 holds 1 samples that are NaN or infinite; leave it out"),
        (
            np.zeros((2, 8000), np.float32),
            "clip 3 has shape (2, 8000); give one channel as a 1-D array, for example "
            "clip.mean(axis=0)",
        ),
        (np.float32(1.0), "clip 3 has shape (); give one channel as a 1-D array"),
        (
            np.zeros(8000, np.int16),
            "clip 3 has samples of type int16; give floats between -1 and 1, for example "
            "clip.astype('float32') / 32768",
        ),
        (np.zeros(8000, complex), "clip 3 has samples of type complex128; give floats"),
        (np.zeros(1599, np.float32), "clip 3 lasts 0.0999 s; the shortest usable clip is 0.1 s"),
    ],
)
def test_a_bad_array(clip, sentence):
    with pytest.raises(AudioError) as caught:
        check_clip(clip, "clip 3")
    assert str(caught.value).startswith(sentence)


def test_good_arrays():
    for clip in (GOOD, GOOD.astype(np.float64), list(map(float, GOOD)), GOOD.astype(np.float16)):
        checked = check_clip(clip, "clip")
        assert checked.dtype == np.float32
        np.testing.assert_array_equal(checked, np.asarray(clip, np.float32))
    reversed_ = check_clip(GOOD[::-1], "clip")
    assert reversed_.flags.c_contiguous
    assert check_clip(np.zeros(1600, np.float32), "just long enough").shape == (1600,)


def test_convert_resamples(written):
    """The pitch stays, the length is right, and nothing is added above half the old rate."""
    for rate in (8_000, 11_025, 22_050, 44_100, 48_000):
        clip = read_clip(written(tone(1000, rate, 1.0), rate), "clip", convert=True)
        assert clip.dtype == np.float32
        assert abs(len(clip) - 16_000) <= 1
        spectrum = np.abs(np.fft.rfft(clip[:16_000] * np.hanning(min(len(clip), 16_000))))
        assert np.argmax(spectrum) == 1000
        far = np.delete(spectrum, range(980, 1021))
        assert far.max() < 1e-3 * spectrum[1000]
        middle = slice(2000, 14_000)
        np.testing.assert_allclose(clip[middle], tone(1000, 16_000, 1.0)[middle], atol=2e-3)
        expected = soxr.resample(tone(1000, rate, 1.0), rate, 16_000)
        np.testing.assert_array_equal(clip, expected)


def test_what_16_khz_cannot_carry_is_removed(written):
    clip = read_clip(written(tone(12_000, 48_000), 48_000), "clip", convert=True)
    assert np.abs(clip[1000:-1000]).max() < 1e-3  # no alias at 4 kHz


def test_convert_mixes_down(written):
    left, right = tone(500, 16_000), tone(900, 16_000)
    clip = read_clip(written(np.stack([left, right], axis=1)), "clip", convert=True)
    np.testing.assert_allclose(clip, (left + right) / 2, atol=1e-6)
    both = written(np.stack([tone(500, 8000), tone(500, 8000)], axis=1), 8000, name="both.wav")
    expected = soxr.resample(tone(500, 8000), 8000, 16_000)
    np.testing.assert_allclose(read_clip(both, "clip", convert=True), expected, atol=1e-6)


def test_convert_mends_nothing_else(written):
    for samples in (GOOD[:0], nan_at(5), GOOD[:80]):
        for rate in (16_000, 8_000):
            with pytest.raises(
                AudioError, match=r"^audio file 1.wav (is empty|holds \d+ samples|lasts )"
            ):
                read_clip(written(samples, rate), "1.wav", convert=True)
