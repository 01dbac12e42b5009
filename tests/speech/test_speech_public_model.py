"""What follows from public clips: computed once, kept, and the same as if computed afresh."""

from __future__ import annotations

import copy
import gc
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from safetensors.numpy import load_file, save_file

from fedsim.quant.calibrators import CALIBRATORS
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.losses import MAX_MEASURED, weight_losses, wide_inputs
from fedsim.quant.moments import LayerMoments, SecondMoments, second_moments
from fedsim.quant.rounding.plan import round_plan
from fedsim.quant.switch import switch_of
from fedsim.quant.weights import dequantize_weight
from fedsim.speech.models.base import own_tokens, tuning_batches
from fedsim.speech.public_model import (
    AUTO,
    CLIPS_PER_LANGUAGE,
    LOSS_CLIPS,
    PublicModel,
    losses_on,
    own_losses,
)
from fedsim.speech.public_set import PublicClip, PublicSet, public_set_of
from fedsim.speech.tuning import tuning_pass

HOW = WeightFormat("per_channel")
DEPTHS = (2, 4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "public"


def clips_of(languages: str, seed: int = 0) -> PublicSet:
    """One clip for each letter: i and e are languages, a dot is none that is known."""
    names = {"i": "it", "e": "en", ".": None}
    return public_set_of(
        PublicClip(toys.clip(0.3 + 0.05 * i, 100 * seed + i), names[letter])
        for i, letter in enumerate(languages)
    )


CLIPS = clips_of("iei")


def never() -> PublicSet:
    raise AssertionError


def same_moments(a: Mapping[str, SecondMoments], b: Mapping[str, SecondMoments]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].rows == b[name].rows and np.array_equal(a[name].mean, b[name].mean) for name in a
    )


def everything(public: PublicModel) -> tuple:
    table = public.losses("scaled", HOW, DEPTHS, pairs=True)
    return public.moments, table.values, table.pairs, public.wide


def same(a: tuple, b: tuple) -> bool:
    return (
        same_moments(a[0], b[0])
        and np.array_equal(a[1], b[1])
        and np.array_equal(a[2], b[2])
        and a[3] == b[3]
    )


@pytest.mark.parametrize("name", ["ctc-layer", "whisper"])
def test_what_is_kept_equals_what_is_made(speech, cache, name):
    model = speech(name)
    fresh = everything(PublicModel(model, lambda: CLIPS, 1))
    files = sorted(path.name.split("-")[0] for path in cache.iterdir())
    assert files == ["inputs", "losses", "moments"]
    stamps = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    time.sleep(0.01)
    again = everything(PublicModel(model, lambda: CLIPS, 1))
    assert same(fresh, again)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == stamps
    # Layers that share moments still do, and nothing of the pass is left in the network.
    for a, b in zip(fresh[0].values(), list(fresh[0].values())[1:], strict=False):
        assert a.rows >= 1
        assert b.mean.dtype == np.float32
    for one in (fresh[0], again[0]):
        assert len({id(found) for found in one.values()}) < len(one)


def test_moments_are_those_of_all_clips_in_their_languages(speech):
    model = speech("whisper")
    public = PublicModel(model, lambda: CLIPS, 1)
    batches = []
    for language, places in (("en", [1]), ("it", [0, 2])):
        clips = [CLIPS.clips[i].clip for i in places]
        batches += tuning_batches(model, clips, own_tokens(model, clips, language), language)
    assert same_moments(public.moments, second_moments(model, batches))


def test_losses_are_those_of_the_rounded_layers(speech):
    model = speech("ctc-group")
    public = PublicModel(model, lambda: CLIPS, 1)
    full = switch_of(model).full_weights()
    batches = [
        batch
        for places in ([1], [0, 2])
        for batch in tuning_batches(model, [CLIPS.clips[i].clip for i in places], None)
    ]
    for rounding, moments in (("nearest", {}), ("scaled", {}), ("compensated", public.moments)):
        packed = {
            depth: round_plan(
                full, model.layers, [depth] * len(model.layers), rounding, HOW, moments
            )
            for depth in DEPTHS
        }
        expected = weight_losses(
            model, batches, DEPTHS, lambda i, d, packed=packed: dequantize_weight(packed[d][i])
        )
        found = public.losses(rounding, HOW, DEPTHS)
        assert found.depths == DEPTHS
        assert found.pairs is None
        np.testing.assert_array_equal(found.values, expected.values)
        found = losses_on(model, batches, rounding, HOW, DEPTHS, moments)
        np.testing.assert_array_equal(found.values, expected.values)


@pytest.mark.parametrize("layers_kept", [0, 1, 1000])
def test_rounded_weights_are_unpacked_again_where_they_would_take_too_much(speech, layers_kept):
    """The same losses, to the bit, with as many float weights alive between two batches as fit."""
    model = speech("ctc-group")
    clips = [toys.clip(seconds) for seconds in (0.4, 0.5, 0.6)]
    ready = list(tuning_batches(model, clips, None))
    expected = losses_on(model, ready, "nearest", HOW, DEPTHS, {})
    shapes = {layer.shape for layer in model.layers}
    alive = []

    def batches():
        for batch in ready:
            gc.collect()
            found = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
            alive.append(sum(tuple(x.shape) in shapes and x.is_floating_point() for x in found))
            yield batch

    room = layers_kept * max(4 * layer.n_weights for layer in model.layers)
    found = losses_on(model, batches(), "nearest", HOW, DEPTHS, {}, dense_bytes=room)
    np.testing.assert_array_equal(found.values, expected.values)
    measured = len(model.layers) * sum(depth <= MAX_MEASURED for depth in DEPTHS)
    kept = alive[1] - alive[0]
    assert len(alive) > 1
    if layers_kept == 1:
        assert 1 <= kept < measured
    else:
        assert kept == (measured if layers_kept else 0)


def test_own_losses_read_no_moments(speech):
    """They are measured with the rounding's probe, on the user's own clips."""
    model = speech("ctc-group")
    own = tuning_pass(model, toys.clips([0.4, 0.5]))
    for rounding, probe in (
        ("nearest", "nearest"),
        ("scaled", "scaled"),
        ("compensated", "nearest"),
    ):
        expected = losses_on(model, own.batches(), probe, HOW, DEPTHS, {})
        np.testing.assert_array_equal(
            own_losses(own, rounding, HOW, DEPTHS).values, expected.values
        )


@pytest.mark.parametrize(
    ("languages", "used"),
    [
        ("i" * 12, range(LOSS_CLIPS)),
        ("i" * 3, range(3)),
        ("ie" * 6, range(8)),
        ("iiiiiiie", [0, 1, 2, 3, 7]),
        ("ie." * 6, range(3 * CLIPS_PER_LANGUAGE)),
    ],
)
def test_losses_need_a_few_clips_of_each_language(speech, languages, used):
    """Others may be anything: the table is that of the few."""
    model, public = speech("ctc-group"), clips_of(languages)
    few = PublicSet(tuple(public.clips[i] for i in used))
    tables = [
        PublicModel(model, lambda one=one: one, 1).losses("nearest", HOW, (2,)).values
        for one in (public, few)
    ]
    np.testing.assert_array_equal(*tables)


def harmed(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[:-1])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "noise":
        path.write_bytes(b"not a file of arrays")
    elif how == "a bit":
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    elif how == "fewer arrays":
        arrays = load_file(path)
        arrays.popitem()
        save_file(arrays, path)
    elif how == "other arrays":
        save_file({"x": np.zeros(3)}, path)
    else:
        path.unlink()
        path.mkdir()


@pytest.fixture(scope="module")
def once(speech, tmp_path_factory) -> tuple[Path, tuple]:
    """What follows from the clips, made once, and the folder that it is kept in."""
    home = tmp_path_factory.mktemp("once")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSIM_CACHE", str(home))
        moments, *others = everything(PublicModel(speech("ctc-group"), lambda: CLIPS, 1))
        held = {name: LayerMoments(one.mean, one.rows) for name, one in moments.items()}
        return home, (held, *others)


@pytest.mark.parametrize(
    "how", ["cut", "empty", "noise", "a bit", "fewer arrays", "other arrays", "a folder"]
)
def test_a_damaged_file_is_made_again(speech, once, cache, how):
    model, (home, fresh) = speech("ctc-group"), once
    shutil.copytree(home, cache.parent)
    kept = {path: None if how == "a folder" else path.read_bytes() for path in cache.iterdir()}
    for path in kept:
        harmed(path, how)
    assert same(everything(PublicModel(model, lambda: CLIPS, 1)), fresh)
    if how != "a folder":  # whose place is not taken
        assert {path: path.read_bytes() for path in cache.iterdir()} == kept


def test_everything_that_matters_is_in_the_key(speech, model_folder, cache):
    model = speech("ctc-group")

    def files() -> int:
        return len(list(cache.iterdir())) if cache.exists() else 0

    def adds(**changes) -> bool:
        before = files()
        given = {"model": model, "clips": CLIPS, "threads": 1, "what": "moments"} | changes
        public = PublicModel(given["model"], lambda: given["clips"], given["threads"])
        if given["what"] == "moments":
            _ = public.moments
        else:
            public.losses(*given["what"][:3], pairs=given["what"][3])
        return files() > before

    assert adds()
    assert not adds()
    nudged = replace(model, module=copy.deepcopy(model.module))
    assert not adds(model=nudged)  # the same weights elsewhere
    nudged = replace(model, module=copy.deepcopy(model.module))
    with torch.no_grad():
        next(nudged.module.parameters()).view(-1)[0] += 1e-3
    assert adds(model=nudged)
    rest = replace(model, module=copy.deepcopy(model.module))
    with torch.no_grad():
        rest.module.lm_head.bias[0] += 1e-3  # of no layer
    assert adds(model=rest)
    assert adds(model=replace(model, settings=dict(model.settings) | {"window_s": 3}))
    assert adds(model=replace(model, batch_size=model.batch_size + 1))
    assert adds(threads=2)
    assert adds(clips=clips_of("iei", seed=1))
    assert adds(clips=clips_of("iee"))

    first = ("nearest", HOW, DEPTHS, False)
    assert adds(what=first)
    assert not adds(what=first)
    for other in (
        ("scaled", HOW, DEPTHS, False),
        ("nearest", WeightFormat("per_tensor"), DEPTHS, False),
        ("nearest", WeightFormat("per_channel", True), DEPTHS, False),
        ("nearest", HOW, (2, 3), False),
        ("nearest", HOW, DEPTHS, True),
    ):
        assert adds(what=other)


@pytest.mark.parametrize("blocked", ["file", "public"])
def test_a_cache_that_cannot_be_written_costs_time_alone(
    speech, cache, tmp_path, monkeypatch, blocked
):
    model = speech("ctc-group")
    fresh = everything(PublicModel(model, lambda: CLIPS, 1))
    home = tmp_path / "other"
    if blocked == "file":
        home.write_text("in the way")
    else:
        home.mkdir()
        (home / "public").write_text("in the way")
    monkeypatch.setenv("FEDSIM_CACHE", str(home))
    assert same(everything(PublicModel(model, lambda: CLIPS, 1)), fresh)
    assert home.is_file() or (home / "public").is_file()


def test_depths_of_inputs(speech):
    model = speech("whisper")
    n = len(model.layers)
    for calibration in CALIBRATORS:
        idle = PublicModel(model, never, 1)
        assert idle.input_bits(8, calibration) == (8,) * n
        assert idle.input_bits(12, calibration) == (12,) * n
        if not CALIBRATORS[calibration].static:
            assert idle.input_bits(AUTO, calibration) == (8,) * n
    public = PublicModel(model, lambda: CLIPS, 1)
    bits = public.input_bits(AUTO, "minmax")
    assert bits == tuple(16 if wide else 8 for wide in public.wide)
    assert public.input_bits(AUTO, "cosine") == bits
    assert len(bits) == n
    # The table that they are chosen by: embeddings have no input, and cost nothing.
    (kept,) = [load_file(p) for p in _files() if p.name.startswith("inputs-")]
    losses = kept["losses"]
    assert losses.shape == (n,)
    assert public.wide == tuple(wide_inputs(losses).tolist())
    for layer, loss in zip(model.layers, losses, strict=True):
        assert (loss == 0) == (layer.kind == "embedding")


def _files() -> list[Path]:
    from fedsim.base.paths import cache_dir

    return list((cache_dir() / "public").iterdir())


def test_clips_are_read_once_and_only_if_needed(speech):
    calls = []

    def read() -> PublicSet:
        calls.append(1)
        return CLIPS

    public = PublicModel(speech("ctc-group"), read, 1)
    assert calls == []
    everything(public)
    assert calls == [1]
