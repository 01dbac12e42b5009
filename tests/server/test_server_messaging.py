"""The stream of messages: any length, a bounded number in flight, second replies recognized."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
from fedsim_server.messaging import WINDOW, Outgoing, stream
from scripted import ScriptedGrid, good

from fedsim.engine.flower_internals import server_identity
from fedsim.protocol import codec
from fedsim.protocol import messages as m


@pytest.fixture(autouse=True)
def identity():
    with server_identity():
        yield


def outgoing(n):
    return [Outgoing(i + 100, m.SENSE, m.SenseRequest("x")) for i in range(n)]


def stream_all(n, follow=None):
    grid = ScriptedGrid(good, {i + 100: f"c{i}" for i in range(n + 500)})
    follow_ups: deque = deque()
    found = []
    for sent, reply, fresh in stream(grid, iter(outgoing(n)), follow_ups):
        assert fresh
        assert codec.from_record(m.Summary, reply.content, "x").client == grid.names[sent.node]
        found.append(sent)
        if follow:
            follow(sent, follow_ups)
    return grid, found


def test_a_stream_of_any_length():
    for n in (0, 1, WINDOW - 1, WINDOW, WINDOW + 1, 700):
        grid, found = stream_all(n)
        assert sorted(out.node for out in found) == [i + 100 for i in range(n)]
        assert grid.max_waiting <= WINDOW
        assert not grid.waiting


def test_what_is_appended_is_sent_before_the_rest():
    def follow(sent, follow_ups):
        if 230 <= sent.node < 235:  # among the first to answer
            follow_ups.append(replace(sent, node=sent.node + 500))

    grid, found = stream_all(300, follow)
    assert len(found) == 305
    names = [who for who, _ in grid.sent]
    assert names.index("c630") < names.index("c299")


def test_a_stream_is_read_as_there_is_room():
    """A generator over a million clients is not turned into a list of messages."""
    read = []

    def messages():
        for out in outgoing(1000):
            read.append(out)
            yield out

    grid = ScriptedGrid(good, {i + 100: f"c{i}" for i in range(1000)})
    for number, _ in enumerate(stream(grid, messages(), deque()), start=1):
        assert len(read) <= number + WINDOW


def test_second_replies_are_told_from_first_ones():
    """A duplicate, and an answer that comes after its request was given up."""
    grid = ScriptedGrid(good, {100: "c0", 101: "c1"})
    pull = grid.pull_messages
    grid.pull_messages = lambda ids: [r for r in pull(ids) for _ in range(2)]
    found = [(out.node, fresh) for out, _, fresh in stream(grid, outgoing(2), deque())]
    assert sorted(found) == [(100, False), (100, True), (101, False), (101, True)]
