"""What is kept in the cache, with a right hash and wrong content: it counts as nothing kept."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import toys
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from properties import examples
from safetensors.numpy import load_file, save_file

from fedsim.errors import FedsimError
from fedsim.quant.moments import LayerMoments, moment_shapes
from fedsim.speech.public_cache import kept_arrays, kept_moments
from fedsim.speech.public_model import PublicModel
from fedsim.speech.public_set import PublicClip, public_set_of

LEGAL = {"values": (3, 2), "pairs": (6, 6)}
MADE = {"values": np.arange(6.0).reshape(3, 2), "pairs": np.eye(6, dtype=np.float32)}
SHAPES = {"a": (1, 4, 4), "b": (1, 4, 4), "conv": (2, 3, 3)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    return tmp_path / "public"


def moments() -> dict[str, LayerMoments]:
    shared = np.eye(4, dtype=np.float32)[None]
    other = np.ones((2, 3, 3), np.float32)
    return {
        "a": LayerMoments(shared, 40),
        "b": LayerMoments(shared, 40),
        "conv": LayerMoments(other, 7),
    }


def rehashed(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Keep these arrays, with the hash that belongs to them."""
    arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items() if k != "fedsim.digest"}
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        digest.update(array.data)
    kept = np.frombuffer(digest.digest(), np.uint8)
    save_file(arrays | {"fedsim.digest": kept}, path)


def never():
    raise AssertionError


def test_what_is_whole_is_kept(cache):
    first = kept_arrays("losses", LEGAL, lambda: MADE)
    again = kept_arrays("losses", LEGAL, never)
    rehashed(cache / "losses.safetensors", load_file(cache / "losses.safetensors"))
    third = kept_arrays("losses", LEGAL, never)
    for name, array in MADE.items():
        for found in (first, again, third):
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


def value(name: str, array) -> dict[str, np.ndarray]:
    return MADE | {name: np.asarray(array)}


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"values": MADE["values"]},
        value("more", np.zeros(2)),
        value("values", np.zeros((2, 3))),
        value("values", np.zeros((3, 3))),
        value("values", np.zeros(6)),
        value("values", np.zeros((3, 2), np.int64)),
        value("values", np.full((3, 2), np.nan)),
        value("pairs", np.full((6, 6), np.inf)),
        value("pairs", np.zeros((6, 7))),
        value("fedsim.rows", np.zeros(3, np.uint8)),
    ],
)
def test_what_does_not_fit_is_made_again(cache, arrays):
    kept_arrays("losses", LEGAL, lambda: MADE)
    whole = (cache / "losses.safetensors").read_bytes()
    rehashed(cache / "losses.safetensors", arrays)
    found = kept_arrays("losses", LEGAL, lambda: MADE)
    np.testing.assert_array_equal(found["values"], MADE["values"])
    assert (cache / "losses.safetensors").read_bytes() == whole


def test_a_hollow_file_of_gigabytes_is_not_read(cache):
    kept_arrays("losses", LEGAL, lambda: MADE)
    path = cache / "losses.safetensors"
    size = 60 << 30
    header = json.dumps({"values": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    os.truncate(path, 8 + len(header) + size)
    found = kept_arrays("losses", LEGAL, lambda: MADE)
    np.testing.assert_array_equal(found["values"], MADE["values"])


def test_moments_are_kept_and_shared(cache):
    kept_moments("moments", SHAPES, moments)
    found = kept_moments("moments", SHAPES, never)
    assert found["a"] is found["b"]
    assert {name: one.rows for name, one in found.items()} == {"a": 40, "b": 40, "conv": 7}


def test_moments_stay_in_the_file(cache):
    """Neither writing nor reading them takes their bytes once more."""
    names = [str(i) for i in range(40)]
    shapes = dict.fromkeys(names, (1, 300, 300))
    made = {
        name: LayerMoments(np.full((1, 300, 300), i, np.float32), 99)
        for i, name in enumerate(names)
    }
    one = made["0"].nbytes
    tracemalloc.start()
    try:
        found = kept_moments("moments", shapes, lambda: made)
        again = kept_moments("moments", shapes, never)
        sums = [float(again[name].mean.sum()) for name in names]
        assert tracemalloc.get_traced_memory()[1] < 3 * one
    finally:
        tracemalloc.stop()
    assert sums == [300 * 300 * i for i in range(40)]
    assert {moments.nbytes for moments in again.values()} == {one}
    (cache / "moments.safetensors").unlink()
    np.testing.assert_array_equal(found["7"].mean, made["7"].mean)  # the file is open


def test_moments_of_a_file_that_is_cut_while_it_is_used(cache):
    found = kept_moments("moments", SHAPES, moments)
    os.truncate(cache / "moments.safetensors", 100)
    with pytest.raises(FedsimError, match="run again"):
        _ = found["conv"].mean


def test_moments_that_cannot_be_kept(cache):
    cache.write_text("a file in the folder's place")
    assert kept_moments("moments", SHAPES, moments).keys() == SHAPES.keys()


@pytest.mark.parametrize(
    "rows",
    [
        None,
        [],
        "abc",
        {"a": ["a", 40]},  # arrays of which nobody knows
        {"a": ["a", 40], "b": ["none", 40], "conv": ["conv", 7]},
        {"a": ["conv", 40], "b": ["a", 40], "conv": ["conv", 7]},
        {"a": ["a", -1], "b": ["a", 40], "conv": ["conv", 7]},
        {"a": ["a", 2**60], "b": ["a", 40], "conv": ["conv", 7]},
        {"a": ["a", 1.5], "b": ["a", 40], "conv": ["conv", 7]},
        {"a": ["a", True], "b": ["a", 40], "conv": ["conv", 7]},
        {"a": ["a"], "b": ["a", 40], "conv": ["conv", 7]},
        {"a": ["a", 40], "b": ["a", 41], "conv": ["conv", 7]},  # shared, on other inputs
        {"other": ["a", 40], "conv": ["conv", 7]},
        "deep",
    ],
)
def test_moments_that_do_not_fit_are_made_again(cache, rows):
    kept_moments("moments", SHAPES, moments)
    path = cache / "moments.safetensors"
    text = b"[" * 100_000 if rows == "deep" else json.dumps(rows).encode()
    rehashed(path, load_file(path) | {"fedsim.rows": np.frombuffer(text, np.uint8)})
    calls: list[int] = []

    def make() -> dict[str, LayerMoments]:
        calls.append(1)
        return moments()

    found = kept_moments("moments", SHAPES, make)
    assert calls == [1]
    assert {name: one.rows for name, one in found.items()} == {"a": 40, "b": 40, "conv": 7}


@settings(
    max_examples=examples(100),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=6))
def test_any_damage_gives_what_was_made(cache, where, new):
    kept_moments("moments", SHAPES, moments)
    path = cache / "moments.safetensors"
    data = bytearray(path.read_bytes())
    at = where % len(data)
    data[at : at + len(new)] = new
    path.write_bytes(bytes(data))
    found = kept_moments("moments", SHAPES, moments)
    for name, one in moments().items():
        np.testing.assert_array_equal(found[name].mean, one.mean)
        assert found[name].rows == one.rows


@pytest.mark.parametrize("name", ["ctc-group", "whisper", "conformer"])
def test_shapes_are_those_of_what_is_recorded(speech, name):
    """Of every layer that has an input, grouped convolutions among them."""
    clips = public_set_of(PublicClip(toys.clip(0.4, i), "it") for i in range(2))
    model = speech(name)
    found = PublicModel(model, lambda: clips, 1).moments
    shapes = moment_shapes(model)
    assert {layer: one.mean.shape for layer, one in found.items()} == {
        layer: shapes[layer] for layer in found
    }
    assert found.keys() <= shapes.keys()
