"""Full precision from storage: the same answers to the last bit, and every byte counted."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import toys

from fedsim.errors import FedsimError
from fedsim.quant.bank import BlobStore
from fedsim.quant.measures import MEASURES
from fedsim.quant.observe import observe
from fedsim.quant.sensitivity import quantiles, sense
from fedsim.quant.stream import store_weights, streamed
from fedsim.quant.switch import switch_of
from fedsim.speech.models.base import own_tokens, transcribe_clips, tuning_batches

CLIPS = toys.clips([0.3, 0.5, 0.4, 0.45, 0.35])
LANGUAGE = {"whisper": "en"}


@pytest.fixture(params=["ctc-layer", "classifier", "whisper"])
def case(request, speech, tmp_path):
    """A toy model, the language of its clips, a folder with its weights and their names there."""
    model = speech(request.param)
    store = BlobStore(tmp_path / "bank")
    names = store_weights(switch_of(model).full_weights(), model.layers, store)
    return model, LANGUAGE.get(request.param), store, names


@contextmanager
def before_calls(model, names, note):
    """Call `note(name, module)` before every call of the modules of that name."""

    def hook(name):
        def call(module, args):
            note(name, module)

        return call

    handles = [
        model.module.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def needed(model, run) -> list[str]:
    """The layers whose weight is needed while `run` runs: one after the other, calls in a row
    once."""
    owner = {name: layer.name for layer in model.layers for name in (layer.name, *layer.aliases)}
    order: list[str] = []
    with before_calls(model, owner, lambda name, module: order.append(owner[name])):
        run()
    return [name for name, last in zip(order, [None, *order], strict=False) if name != last]


def test_sensitivities_are_equal_to_the_last_bit(case):
    model, language, store, names = case
    tokens = own_tokens(model, CLIPS, language)

    def batches():
        return tuning_batches(model, CLIPS, tokens, language)

    for measure in MEASURES:
        expected = sense(model, batches(), measure)
        with streamed(model, store, names):
            np.testing.assert_array_equal(sense(model, batches(), measure), expected)
    expected = quantiles(model, batches())
    with streamed(model, store, names):
        np.testing.assert_array_equal(quantiles(model, batches()), expected)


def test_what_calibration_sees_is_equal_too(case):
    model, language, store, names = case
    tokens = own_tokens(model, CLIPS, language)
    expected = observe(model, tuning_batches(model, CLIPS, tokens, language))
    with streamed(model, store, names):
        seen = observe(model, tuning_batches(model, CLIPS, tokens, language))
    for name, view in expected.items():
        assert (seen[name].low, seen[name].high) == (view.low, view.high)
        assert torch.equal(seen[name].rows, view.rows)


def test_transcripts_are_equal(case):
    model, language, store, names = case
    texts, tokens = transcribe_clips(model, CLIPS, language), own_tokens(model, CLIPS, language)
    with streamed(model, store, names):
        assert transcribe_clips(model, CLIPS, language) == texts
        again = own_tokens(model, CLIPS, language)
    assert len(set(texts)) > 1
    for one, other in zip(tokens or (), again or (), strict=True):
        assert torch.equal(one, other)


def test_every_byte_that_is_read_counts(case):
    """Each layer once a pass over a batch, a decoder once a token."""
    model, language, store, names = case
    size = {layer.name: 4 * layer.n_weights for layer in model.layers}
    tokens = own_tokens(model, CLIPS, language)
    batches = list(tuning_batches(model, CLIPS, tokens, language))
    with streamed(model, store, names) as reading:
        assert reading.bytes_read == 0
        sense(model, batches)
    order = needed(model, lambda: sense(model, batches))
    assert reading.bytes_read == sum(size[name] for name in order)
    if tokens is None:
        assert reading.bytes_read == len(batches) * sum(size.values())
    with streamed(model, store, names) as reading:
        transcribe_clips(model, CLIPS, language)
    order = needed(model, lambda: transcribe_clips(model, CLIPS, language))
    assert reading.bytes_read == sum(size[name] for name in order)
    if tokens is not None:
        assert reading.bytes_read > 10 * sum(size.values())


def test_a_weight_lies_as_the_one_that_it_stands_for(case):
    """Where a weight begins decides about the last digit of a product."""
    model, language, store, names = case
    before = {n: w.data_ptr() % 64 for n, w in switch_of(model).full_weights().items()}
    tokens = own_tokens(model, CLIPS, language)
    found = {}

    def note(name, module):
        found.setdefault(name, module.weight.data_ptr() % 64)

    with streamed(model, store, names), before_calls(model, before, note):
        sense(model, tuning_batches(model, CLIPS, tokens, language))
    assert found == before


def test_files_are_weights_under_their_hash(case):
    model, _, store, names = case
    full = switch_of(model).full_weights()
    assert set(names) == set(full)
    for layer, name in names.items():
        data = (store.folder / name).read_bytes()
        assert data == np.ascontiguousarray(full[layer].numpy(), "<f4").tobytes()
        assert name == hashlib.sha256(data).hexdigest()
    written = {path: path.stat().st_mtime_ns for path in store.folder.iterdir()}
    assert store_weights(full, model.layers, store) == names  # another worker of the same run
    assert {path: path.stat().st_mtime_ns for path in store.folder.iterdir()} == written


@pytest.fixture
def small(speech, tmp_path):
    model = speech("ctc-layer")
    store = BlobStore(tmp_path / "bank")
    names = store_weights(switch_of(model).full_weights(), model.layers, store)
    return model, store, names, store.folder / names[model.layers[5].name]


def run(model) -> None:
    sense(model, tuning_batches(model, CLIPS[:1], None))


@pytest.mark.parametrize("harm", ["flip", "cut", "grow", "empty"])
def test_a_damaged_file_is_an_error(small, harm):
    model, store, names, path = small
    data = path.read_bytes()
    spoilt = {
        "flip": data[:-1] + bytes([data[-1] ^ 1]),
        "cut": data[:-4],
        "grow": data + b"\0",
        "empty": b"",
    }[harm]
    path.write_bytes(spoilt)
    with (
        pytest.raises(FedsimError, match=rf"blob {path.name[:12]} .* is damaged; delete the file"),
        streamed(model, store, names),
    ):
        run(model)


def test_a_file_that_goes_while_it_is_needed(small):
    model, store, names, path = small
    data = path.read_bytes()
    with streamed(model, store, names):
        run(model)
        path.write_bytes(data[:-4])
        with pytest.raises(FedsimError, match="is damaged"):
            run(model)
        path.unlink()
        with pytest.raises(FedsimError, match=rf"blob {path.name[:12]} cannot be read from .*No"):
            run(model)
        path.write_bytes(data)
        run(model)
