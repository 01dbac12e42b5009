"""Clips as Python has them at hand: every form gives the same samples, or one sentence."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import paper
import pytest
import soundfile
import soxr
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedsim
from fedsim.errors import AudioError, FedsimError
from fedsim.personal.checks import checked_clips
from fedsim.speech.as_clip import as_clip

N = 3_200


def pcm(seed: int, n: int = N) -> np.ndarray:
    """int16 samples, which every form can hold."""
    return np.random.default_rng(seed).integers(-(2**15), 2**15, n).astype(np.int16)


class Decoder:
    """What `datasets` gives for an Audio column, as torchcodec has it."""

    def __init__(self, samples: np.ndarray, rate: int) -> None:
        self._samples, self._rate = samples, rate

    def get_all_samples(self):
        data = torch.from_numpy(self._samples.reshape(1, -1))
        return SimpleNamespace(data=data, sample_rate=self._rate)


FORMS = {
    "float32": lambda x, home: x,
    "float64": lambda x, home: x.astype(np.float64),
    "int16": lambda x, home: (x * 2**15).astype(np.int16),
    "int32": lambda x, home: (x.astype(np.float64) * 2**31).astype(np.int32),
    "list": lambda x, home: x.tolist(),
    "a row": lambda x, home: x[None],
    "a column": lambda x, home: x[:, None],
    "not contiguous": lambda x, home: np.repeat(x, 2)[::2],
    "tensor": lambda x, home: torch.from_numpy(x),
    "tensor (1, n)": lambda x, home: torch.from_numpy(x)[None],
    "double tensor": lambda x, home: torch.from_numpy(x).double(),
    "int16 tensor": lambda x, home: torch.from_numpy((x * 2**15).astype(np.int16)),
    "tensor with a gradient": lambda x, home: torch.from_numpy(x.copy()).requires_grad_(),
    "(samples, rate)": lambda x, home: (x, 16_000),
    "(tensor, numpy rate)": lambda x, home: (torch.from_numpy(x), np.int64(16_000)),
    "stereo (2, n)": lambda x, home: (np.stack([x, x]), 16_000),
    "stereo (n, 2)": lambda x, home: (np.stack([x, x], axis=1), 16_000),
    "datasets": lambda x, home: {"array": x, "sampling_rate": 16_000, "path": None},
    "a row of datasets": lambda x, home: {
        "audio": {"array": x, "sampling_rate": 16_000},
        "text": "a",
    },
    "decoder": lambda x, home: Decoder(x, 16_000),
    "samples": lambda x, home: Decoder(x, 16_000).get_all_samples(),
    "path": lambda x, home: written(x, home),
    "path as text": lambda x, home: str(written(x, home)),
    "bytes of datasets": lambda x, home: {"bytes": written(x, home).read_bytes(), "path": "a.wav"},
    "path of datasets": lambda x, home: {"bytes": None, "path": str(written(x, home))},
}


def written(samples, home):
    soundfile.write(home / "a.wav", samples, 16_000, subtype="PCM_16")
    return home / "a.wav"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form, tmp_path):
    truth = pcm(1).astype(np.float32) / 2**15
    found = as_clip(FORMS[form](truth, tmp_path), "clip 0")
    assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
    assert np.array_equal(found, truth)


@given(st.sampled_from([8_000, 11_025, 22_050, 24_000, 44_100, 48_000]), st.integers(0, 99))
def test_other_rates_are_resampled_by_soxr(rate, seed):
    samples = pcm(seed, rate // 4).astype(np.float32) / 2**15
    truth = soxr.resample(samples, rate, 16_000)
    for form in (
        (samples, rate),
        {"array": samples, "sampling_rate": rate},
        Decoder(samples, rate),
    ):
        assert np.array_equal(as_clip(form, "clip 0"), truth)


def test_channels_are_averaged():
    left, right = (pcm(seed).astype(np.float32) / 2**15 for seed in (1, 2))
    found = as_clip((np.stack([left, right]), 16_000), "clip 0")
    assert np.allclose(found, (left + right) / 2)


SOUND = pcm(0).astype(np.float32) / 2**15
REFUSED = [
    (None, "NoneType"),
    ("nowhere.wav", "the file 'nowhere.wav' does not exist"),
    ("a\0b", "does not exist"),
    (3.5, "is a number"),
    (object(), "holds no samples"),
    (["a", "b"], "holds no samples"),
    ([[1.0], [1.0, 2.0]], "holds no samples"),
    ({}, "a dict with the keys"),
    ({"array": SOUND}, "no 'sampling_rate'"),
    ({"array": SOUND, "sampling_rate": "16k"}, "a str for its rate"),
    ({"array": SOUND, "sampling_rate": 0}, "a rate of 0 Hz"),
    ((SOUND, float("nan")), "a rate of nan Hz"),
    ((16_000, SOUND), "begins with a number"),
    (np.stack([SOUND, SOUND]), "shape (2, 3200)"),
    ((np.zeros((300, 310), np.float32), 16_000), "neither axis is clearly the channels"),
    (np.zeros((2, 3, 4), np.float32), "shape (2, 3, 4)"),
    (np.array([], np.float32), "is empty"),
    (np.array([np.nan] * N, np.float32), "clip 1"),
    (np.ones(N, bool), "holds no samples"),
    (np.ones(N, complex), "holds no samples"),
]


@pytest.mark.parametrize(("clip", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_anything_else_is_refused_with_its_number(clip, words):
    with pytest.raises(AudioError) as caught:
        checked_clips([SOUND, clip])
    text = str(caught.value)
    assert [part in text for part in (words, "clip 1", "\n")] == [True, True, False]


@pytest.mark.parametrize(
    "clips",
    [
        SOUND,
        "a.wav",
        b"RIFF",
        3,
        None,
        [],
        {"array": SOUND},
        (SOUND, 16_000),
        Decoder(SOUND, 16_000),
    ],
    ids=["array", "path", "bytes", "number", "None", "empty", "dict", "pair", "decoder"],
)
def test_one_clip_in_place_of_a_list(clips):
    with pytest.raises(FedsimError, match=r"give (a list|at least one)"):
        checked_clips(clips)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.tuples(inner, inner)
            | st.dictionaries(
                st.sampled_from(["array", "sampling_rate", "path", "bytes", "audio"]), inner
            )
        ),
        max_leaves=6,
    )
)
def test_nothing_is_a_traceback(anything):
    with suppress(AudioError):
        as_clip(anything, "clip 0")


def test_personalize_takes_them(model_folder, tmp_path):
    model = fedsim.load_model(model_folder("ctc-layer"))
    clips = [pcm(seed, 9_000).astype(np.float32) / 2**15 for seed in range(3)]
    rows = [{"audio": {"array": clip, "sampling_rate": 16_000}} for clip in clips]
    one = fedsim.personalize(model, clips, budget_mb=0.0334, **paper.OPTIONS)
    two = fedsim.personalize(model, rows, budget_mb=0.0334, **paper.OPTIONS)
    for name, made in (("one", one), ("two", two)):
        made.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert one.transcribe(rows) == one.transcribe(clips)
