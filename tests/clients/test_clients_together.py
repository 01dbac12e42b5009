"""Clients that share forward passes in a process: who, when, and what becomes of errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fedsim_clients.audio import ClientAudio
from fedsim_clients.device import Device
from fedsim_clients.together import group_of, shared

from fedsim.errors import FedsimError
from fedsim.protocol import messages as m
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
    group = group_of(grouped, grouped.clients["ann"])
    tried = []

    def together(clients):
        tried.append(keys(clients))
        raise FedsimError("bob's clips are broken")

    def alone(key):
        if key == "bob":
            raise FedsimError("client 'bob': its clips are broken")
        return key

    def result(key):
        data = grouped.clients[key]
        return shared(grouped, "what", group, data, together, lambda: alone(key))

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

    with pytest.raises(type(error)):
        shared(grouped, "what", group, group[0], together, lambda: pytest.fail("ran alone"))
