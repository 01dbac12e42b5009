"""What one process keeps for its clients: it changes no result, is bounded, and saves passes."""

from __future__ import annotations

from dataclasses import replace

from fedsim_clients.device import Device
from fedsim_clients.reading import ClipReader
from fedsim_clients.runtime import REMEMBERED

from fedsim.base.cache import LRUCache
from fedsim.protocol import messages as m
from fedsim.quant.bank import WeightCache
from fedsim.scenario import MethodSettings
from fedsim.speech.clips import read_utterance
from fedsim.speech.models.base import public_signal, tuning_batches


def fresh(runtime):
    """The runtime with nothing in its caches of clients."""
    return replace(runtime, clips=ClipReader(0), observations=LRUCache(), results=LRUCache())


def test_clients_of_one_process_do_not_disturb_each_other(runtime, planner):
    devices = [Device(runtime, runtime.clients[key]) for key in ("ann", "bob")]
    own = [planner.own(d.sense(m.SenseRequest("median")))[:6] for d in devices]
    alone = [d.evaluate(m.Evaluation(True, c)) for d, c in zip(devices, own, strict=True)]
    anew = fresh(runtime)
    devices = [Device(anew, device.data) for device in devices]
    again = [d.evaluate(m.Evaluation(True, c)) for d, c in [*zip(devices, own, strict=True)][::-1]]
    assert again[::-1] == alone


def test_what_is_forgotten_is_made_again(device, runtime, candidates):
    first = device.evaluate(m.Evaluation(False, candidates))
    forgetful = replace(
        runtime,
        weights=WeightCache(runtime.weights.store, limit=1),  # no layer is kept but the last
        clips=ClipReader(1),
        observations=LRUCache(1),
        results=LRUCache(max_values=1),
    )
    assert Device(forgetful, device.data).evaluate(m.Evaluation(False, candidates)) == first


def test_what_is_remembered_is_bounded(runtime):
    for i in range(REMEMBERED + 1):
        assert runtime.remember(i, lambda i=i: 2 * i) == 2 * i
    assert runtime.remember(REMEMBERED, lambda: 1 / 0) == 2 * REMEMBERED
    assert runtime.remember(0, lambda: "made again") == "made again"


def test_calibrating_hears_the_clips_once(device, candidates, passes):
    """All candidates of a client share one pass, and evaluation repeats none of it."""
    model, evaluation = device.runtime.model, m.Evaluation(False, candidates)
    tuning = [read_utterance(u) for u in device.data.tuning]
    batches = sum(len(list(tuning_batches(model, c, None))) for c in (tuning, public_signal()))
    with passes(model) as calibrating:
        device.personalize(m.Delivery(False, candidates))
    assert len(calibrating) == batches
    with passes(model) as testing:
        device.evaluate(evaluation)
    with passes(model) as again:
        device.evaluate(evaluation)
    assert len(testing) == len(again)


def test_sensing_and_calibrating_hear_the_clips_once(runtime, planner, passes):
    """Unless a calibration needs gradients, one forward pass per batch serves both."""
    method = MethodSettings(
        allocation="myqasr", calibration=("minmax", "cosine"), rounding=("nearest",)
    )
    forward = runtime.scenario.model_copy(update={"methods": (method,)})
    device = Device(replace(runtime, scenario=forward), runtime.clients["ann"])
    planner = replace(planner, scenario=forward)
    with passes(runtime.model) as found:
        candidates = planner.own(device.sense(m.SenseRequest("median", quantiles=True)))
        batches = len(found)
        assert batches > 0
        once = device.personalize(m.Delivery(True, candidates))
        assert len(found) == batches
    anew = Device(fresh(device.runtime), device.data)  # the same, had it been forgotten
    assert anew.personalize(m.Delivery(True, candidates)) == once
