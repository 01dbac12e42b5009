"""Clients that share forward passes in a process: who, when, and what becomes of errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fedsim_clients.audio import ClientAudio
from fedsim_clients.device import Device
from fedsim_clients.together import group_of, shared

from fedsim.base.cache import LRUCache
from fedsim.errors import AudioError, FedsimError
from fedsim.protocol import messages as m
from fedsim.speech.clips import Utterance
from fedsim.speech.models.base import recognize_clips


@pytest.fixture
def grouped(runtime):
    """The runtime of five clients, two of which share passes."""
    return replace(runtime, clients_per_batch=2)


def keys(group) -> list[str]:
    return [data.key for data in group]


def test_neighbours_share_passes(grouped):
    found = {key: keys(group_of(grouped, grouped.clients[key])) for key in grouped.clients}
    assert found["ann"] == found["bob"] == ["ann", "bob"]
    assert found["cyd"] == found["dee"] == ["cyd", "dee"]
    assert found["eve"] == ["eve"]


def test_only_clients_that_hold_the_same_model_whole(grouped):
    data = grouped.clients["ann"]
    assert keys(ClientAudio(grouped, data, "streamed").group) == ["ann"]
    assert keys(ClientAudio(grouped, data, alone=True).group) == ["ann"]
    group = group_of(grouped, replace(data, language="it"))
    assert "bob" not in keys(group)  # who speaks another language


@pytest.mark.parametrize("taken", ["tuning", "test"])
def test_a_client_that_cannot_take_part_shares_no_pass(grouped, taken):
    """Too few clips fail it when it is asked; its neighbour's group is without it."""
    lame = grouped.clients.changed(lambda c: replace(c, **{taken: ()}) if c.key == "bob" else c)
    runtime = replace(grouped, clients=lame)
    assert keys(group_of(runtime, lame["ann"])) == ["ann"]
    assert keys(group_of(runtime, lame["bob"])) == ["bob"]


def test_the_others_share_a_pass_where_clips_of_one_cannot_be_read(grouped, tmp_path, passes):
    (broken := tmp_path / "broken.wav").write_bytes(b"no audio")
    bad = Utterance("broken", broken)
    clients = grouped.clients.changed(
        lambda c: replace(c, tuning=(bad, *c.tuning[1:])) if c.key == "bob" else c
    )
    runtime = replace(grouped, clients=clients, clients_per_batch=3)
    ann, bob, cyd = (Device(runtime, clients[key]) for key in ("ann", "bob", "cyd"))
    request = m.SenseRequest("median")
    with passes(runtime.model) as found:
        summary = ann.sense(request)
        shared_by_two = len(found)
        with pytest.raises(AudioError, match="client 'bob'"):
            bob.sense(request)
        cyd.sense(request)
        assert len(found) == shared_by_two
        assert replace(ann, alone=True).sense(request).sensitivity == summary.sensitivity
        assert len(found) < 2 * shared_by_two


def test_no_cache_is_too_small_for_a_group(runtime, passes):
    """Not even caches of a single value let a group be computed again for each of its clients."""
    caches = {name: LRUCache(max_values=1) for name in ("observations", "moments", "groups")}
    small = replace(runtime, clients_per_batch=5, **caches)
    devices = [Device(small, small.clients[key]) for key in small.clients]
    made = []
    for parts in ([replace(device, alone=True) for device in devices], devices):
        with passes(small.model) as found:
            for device in parts:
                device.sense(m.SenseRequest("median"))
                assert device.audio.observed(device.data.key, {"minmax"})
                device.evaluate(m.Evaluation(True, ()))
            made.append(len(found))
    assert made[0] == made[1] > 0


def test_groups_outlive_the_runtimes_of_their_languages(grouped, passes):
    """A process keeps models of a few languages, which many clients in turn may push out."""
    ann, bob = (
        Device(replace(grouped, results=LRUCache()), grouped.clients[k]) for k in ("ann", "bob")
    )
    ann.sense(m.SenseRequest("median"))
    with passes(grouped.model) as found:
        bob.sense(m.SenseRequest("median"))
    assert found == []


def test_one_pass_serves_the_neighbour(grouped, passes):
    ann, bob = (Device(grouped, grouped.clients[key]) for key in ("ann", "bob"))
    request = m.SenseRequest("median")
    ann.sense(request)
    with passes(grouped.model) as found:
        bob.sense(request)
        assert found == []
        ann.evaluate(m.Evaluation(True, ()))
        before = len(found)
        scores = bob.evaluate(m.Evaluation(True, ()))
        assert len(found) == before > 0
    clips = bob.audio.read(bob.data.test)
    assert scores.clips == len(recognize_clips(grouped.model, clips))


def test_models_of_nobodys_clips_are_tested_together(grouped, planner, passes):
    """Where budgets are equal: one is installed once for both clients."""
    limits = grouped.devices["ann"]
    equal = replace(grouped, devices=dict.fromkeys(grouped.clients, limits))
    ann, bob = (Device(equal, equal.clients[key]) for key in ("ann", "bob"))
    own = [planner.own(device.sense(m.SenseRequest("median"))) for device in (ann, bob)]
    nobodys = [[c for c in candidates if not c.tuned_on] for candidates in own]
    drawn = [c for c in nobodys[0] if c.name in equal.drawn]
    assert drawn  # `shuffled` has a plan of its own for each client
    nobodys = [[c for c in one if c.name not in equal.drawn] for one in nobodys]
    assert nobodys[0]
    assert [c.blobs for c in nobodys[0]] == [c.blobs for c in nobodys[1]]
    expected = Device(equal, bob.data, alone=True).evaluate(m.Evaluation(False, tuple(nobodys[1])))
    ann.evaluate(m.Evaluation(False, tuple(nobodys[0])))
    with passes(equal.model) as found:
        assert bob.evaluate(m.Evaluation(False, tuple(nobodys[1]))) == expected
    assert found == []


def test_where_the_groups_pass_fails_each_computes_alone(grouped):
    group, cache, tried = group_of(grouped, grouped.clients["ann"]), LRUCache(), []

    def together(clients):
        tried.append(keys(clients))
        raise FedsimError("bob's clips are broken")

    def alone(key):
        if key == "bob":
            raise FedsimError("client 'bob': its clips are broken")
        return key

    def result(key):
        data = grouped.clients[key]
        return shared(cache, "what", group, data, together, lambda: alone(key))

    assert result("ann") == "ann"
    for _ in range(2):
        with pytest.raises(FedsimError, match="client 'bob'"):
            result("bob")
    assert tried == [["ann", "bob"]]  # once for all


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: device lost")])
def test_what_concerns_the_process_is_raised(grouped, error):
    group = group_of(grouped, grouped.clients["ann"])

    def together(clients):
        raise error

    def alone():
        pytest.fail("ran alone")

    with pytest.raises(type(error)):
        shared(LRUCache(), "what", group, group[0], together, alone)
