"""A device that cannot hold the model in full precision: it streams it, or senses on a proxy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fedsim_clients.device import Device
from scipy.stats import spearmanr

from fedsim.base.cache import LRUCache
from fedsim.errors import FedsimError
from fedsim.protocol import messages as m


@pytest.fixture
def whisper(open_study, model_folder):
    """A runtime with a seq2seq model, which labels its clips before it looks at its layers."""
    with open_study(f"model.id={model_folder('whisper')}", "clients.budget_mb=0.2") as runtime:
        yield runtime


ASKED = m.SenseRequest("median", quantiles=True)


@pytest.mark.parametrize("kind", ["runtime", "whisper"])
def test_a_device_that_streams_the_model(kind, request):
    """It answers as one that holds the model, and the run's bank has every layer once."""
    runtime = request.getfixturevalue(kind)
    expected = Device(runtime, runtime.clients["ann"]).sense(ASKED)
    small = Device(replace(runtime, results=LRUCache()), runtime.clients["ann"], "streamed")
    assert not runtime.weights.store.folder.exists()
    assert small.sense(ASKED) == expected
    files = {path.stat().st_size for path in runtime.weights.store.folder.iterdir()}
    assert files == {4 * layer.n_weights for layer in runtime.model.layers}
    written = {path: path.stat().st_mtime_ns for path in runtime.weights.store.folder.iterdir()}
    assert len(written) == len(runtime.model.layers)
    assert Device(small.runtime, runtime.clients["bob"], "streamed").sense(ASKED) != expected
    assert written == {p: p.stat().st_mtime_ns for p in runtime.weights.store.folder.iterdir()}


@pytest.mark.parametrize("kind", ["runtime", "whisper"])
def test_a_device_that_senses_on_a_proxy(kind, request):
    runtime = request.getfixturevalue(kind)
    full, small = (Device(runtime, runtime.clients["ann"], mode) for mode in ("full", "proxy"))
    expected = np.array(full.sense(ASKED).sensitivity)
    found = np.array(small.sense(ASKED).sensitivity)
    assert (found != expected).all()
    assert spearmanr(found, expected).statistic > 0.98
    assert full.sense(ASKED).sensitivity == tuple(expected)


def test_pseudo_labels_come_from_the_mode(whisper):
    """And are not those of another device of this process that holds the model otherwise."""
    (first, *_) = (layer.name for layer in whisper.model.layers)
    held = []  # whether the first layer is in memory, in every pass through it

    def look(module, _):
        held.append(module.weight.numel() > 0)

    handle = whisper.model.module.get_submodule(first).register_forward_pre_hook(look)
    for mode in ("streamed", "proxy"):
        runtime = replace(whisper, results=LRUCache())
        held.clear()
        for chosen in ("full", mode, "full", mode):
            Device(runtime, runtime.clients["ann"], chosen).sense(m.SenseRequest("median"))
        # One pass labels, one senses; the second time there are labels already.
        assert held == [True, True, False, False, True, False]
    handle.remove()


def test_a_mode_ends_with_sensing(runtime):
    """What is evaluated is the model in full precision."""
    expected = Device(runtime, runtime.clients["ann"]).evaluate(m.Evaluation(True, ()))
    for mode in ("streamed", "proxy"):
        device = Device(runtime, runtime.clients["ann"], mode)
        device.sense(m.SenseRequest("median"))
        full = runtime.study.switch.full_weights()
        for name, weight in full.items():
            assert runtime.model.module.get_submodule(name).weight.data_ptr() == weight.data_ptr()
        assert device.evaluate(m.Evaluation(True, ())) == expected


def test_ranges_are_those_of_the_mode(runtime, candidates):
    """Observed layer by layer they are the same to the bit, on a proxy nearly."""
    forward = tuple(c for c in candidates if c.calibration != "hessian")
    assert {c.calibration for c in forward} >= {"cosine", "minmax"}

    def ranges(mode):
        device = Device(runtime, runtime.clients["ann"], mode)
        return np.array(device.personalize(m.Delivery(True, forward)).ranges)

    full = ranges("full")
    assert np.array_equal(ranges("streamed"), full, equal_nan=True)
    proxy = ranges("proxy")
    assert not np.array_equal(proxy, full, equal_nan=True)
    known = np.isfinite(full)
    assert np.corrcoef(proxy[known], full[known])[0, 1] > 0.99


def test_gradients_need_the_whole_model_in_memory(runtime, candidates):
    for mode in ("streamed", "proxy"):
        device = Device(runtime, runtime.clients["ann"], mode)
        with pytest.raises(FedsimError, match=r"'ann': .*hessian.*; use cosine or minmax"):
            device.personalize(m.Delivery(False, candidates))


def test_an_unknown_mode(runtime):
    device = Device(runtime, runtime.clients["ann"], "steamed")
    with pytest.raises(FedsimError, match=r"'steamed'.* did you mean 'streamed'"):
        device.sense(m.SenseRequest("median"))
