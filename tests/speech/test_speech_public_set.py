"""Public clips as bytes: the same on both sides, or refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples
from safetensors.numpy import load, save

from fedsim.errors import FedsimError
from fedsim.speech.public_set import PublicClip, PublicSet, public_set_of, read_public_set

ROUNDS = settings(max_examples=examples(60), deadline=None, derandomize=True, database=None)
CLIPS = [
    PublicClip(toys.clip(0.2), "it"),
    PublicClip(toys.clip(0.11, 1), None),
    PublicClip(np.zeros(3, np.float32), "zh"),
]


def same(a: PublicSet, b: PublicSet) -> None:
    assert [clip.language for clip in a.clips] == [clip.language for clip in b.clips]
    for one, two in zip(a.clips, b.clips, strict=True):
        assert one.clip.dtype == two.clip.dtype == np.float32
        np.testing.assert_array_equal(one.clip, two.clip)


@ROUNDS
@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(-2, 2, width=32), max_size=9), st.none() | st.text(max_size=3)
        ),
        min_size=1,
        max_size=5,
    )
)
def test_round_trip(drawn):
    public = public_set_of(PublicClip(np.array(c, np.float32), language) for c, language in drawn)
    back = read_public_set(public.to_bytes())
    same(back, public)
    assert back.to_bytes() == public.to_bytes()
    assert back.key == public.key
    same(public_set_of(public.clips), public)  # what lies on the grid stays there
    for (samples, _), clip in zip(drawn, public.clips, strict=True):
        within = np.clip(np.array(samples, np.float64), -1, 1 - 2**-15)
        assert np.abs(clip.clip - within).max(initial=0) <= 2**-16 + 1e-9


def test_two_bytes_a_sample():
    public = public_set_of(CLIPS)
    n = sum(len(c.clip) for c in CLIPS)
    assert 2 * n < len(public.to_bytes()) < 2 * n + 1000


def test_the_key_is_of_samples_and_languages():
    public = public_set_of(CLIPS)
    assert public.key == public_set_of(CLIPS).key
    assert len(public.key) == 64
    louder = public_set_of([PublicClip(CLIPS[0].clip + 2**-15, "it"), *CLIPS[1:]])
    spoken = public_set_of([PublicClip(CLIPS[0].clip, "es"), *CLIPS[1:]])
    joined = np.concatenate([CLIPS[0].clip, CLIPS[1].clip[:5]])
    moved = public_set_of([PublicClip(joined, "it"), PublicClip(CLIPS[1].clip[5:], None), CLIPS[2]])
    keys = {one.key for one in (public, louder, spoken, moved, public_set_of(CLIPS[::-1]))}
    assert len(keys) == 5


def spoilt() -> dict[str, bytes]:
    data = public_set_of(CLIPS).to_bytes()
    arrays = dict(load(data))
    lengths = arrays["lengths"]

    def other(**changes: np.ndarray) -> bytes:
        return save(arrays | changes)

    def text(value: object) -> np.ndarray:
        return np.frombuffer(json.dumps(value).encode(), np.uint8)

    return {
        "nothing": b"",
        "cut": data[:-1],
        "half": data[: len(data) // 2],
        "grown": data + b"\0",
        "noise": bytes(range(256)) * 4,
        "another file": save({"weights": np.zeros(3, np.float32)}),
        "a language less": other(languages=text(["it", None])),
        "no list": other(languages=text(5)),
        "no JSON": other(languages=np.full(4, 0xFF, np.uint8)),
        "a sample less": other(samples=arrays["samples"][:-1]),
        "a sample more": other(samples=np.append(arrays["samples"], np.int16(3))),
        "lengths that lead back": other(lengths=lengths + np.array([5000, -5000, 0])),
        "other samples": other(samples=arrays["samples"].astype(np.float32)),
        "samples in rows": other(samples=arrays["samples"][None]),
        "lengths in floats": other(lengths=lengths.astype(np.float64)),
        "lengths in a row": other(lengths=lengths[None]),
        "lengths that overflow": other(lengths=np.array([2**63 - 1, 2**63 - 1, 2])),
        "huge lengths": other(lengths=np.array([2**40, 3, 3])),
        "no clip": other(lengths=lengths[:0], samples=arrays["samples"][:0], languages=text([])),
        "a text of languages": other(languages=text("abc")),
        "languages by name": other(languages=text({"a": 1, "b": 2, "c": 3})),
        "a number for a language": other(languages=text(["it", None, 3])),
        "a long language": other(languages=text(["it", None, "x" * 65])),
        "deep JSON": other(languages=np.frombuffer(b"[" * 100_000, np.uint8)),
        "one array more": other(more=lengths),
    }


@pytest.mark.parametrize("harm", spoilt())
def test_damaged_bytes_are_refused(harm):
    with pytest.raises(
        FedsimError,
        match=r"^the public clips that the server sent are damaged; run the same version",
    ):
        read_public_set(spoilt()[harm])
