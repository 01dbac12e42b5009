"""Which client a Flower node plays, and what its app answers to mistakes."""

from __future__ import annotations

import pytest
from fedsim_clients import app as client_app
from fedsim_clients.identity import client_key, device_of
from flwr.app import Context, Message, RecordDict

from fedsim.engine.flower_internals import new_context, server_identity, set_message_id
from fedsim.engine.nodes import nodes_of
from fedsim.engine.worker import load_app
from fedsim.errors import FedsimError
from fedsim.protocol import messages as m
from fedsim.protocol.run_config import RunConfig
from fedsim.runner.single import CLIENT_APP


def context(runtime, client="ann"):
    run = RunConfig(runtime.scenario.model_dump_json(), runtime.run_dir).to_flower()
    (node,) = nodes_of([client]).values()
    return new_context(node, run, b"")


def test_a_node_is_a_device(runtime):
    device = device_of(context(runtime))
    assert device.runtime is runtime  # one runtime per process
    assert device.data.key == "ann"
    with pytest.raises(FedsimError, match=r"client 'zoe' .*; check the SuperNode"):
        device_of(context(runtime, "zoe"))


def test_whom_a_node_plays():
    keys = ["speaker 9", "speaker 10"]
    assert client_key({"client": "zoe", "partition-id": 0, "num-partitions": 9}, keys) == "zoe"
    in_order = [client_key({"partition-id": i, "num-partitions": 2}, keys) for i in (0, 1)]
    assert in_order == ["speaker 10", "speaker 9"]
    with pytest.raises(FedsimError, match=r"3 SuperNodes .* 2 clients; .*num-supernodes=2"):
        client_key({"partition-id": 0, "num-partitions": 3}, keys)
    with pytest.raises(FedsimError, match="""start it with --node-config 'client="KEY"'"""):
        client_key({}, keys)


def test_a_mistake_is_answered_in_every_runtime(runtime):
    for node, reason in (
        ({"client": "zoe"}, "client 'zoe' is not in the corpus"),
        ({"client": "ann"}, "client 'ann': the message from the server is not a valid Sense"),
        ({}, "this SuperNode's node config names no client"),
    ):
        run = RunConfig(runtime.scenario.model_dump_json(), runtime.run_dir).to_flower()
        with server_identity():
            request = Message(RecordDict(), dst_node_id=5, message_type=m.SENSE)
        set_message_id(request, "1")
        reply = client_app.app(request, Context(1, 5, node, RecordDict(), run))
        assert reply.error.code == 2
        assert reply.error.reason.startswith(reason)


def test_the_flower_app(runtime):
    """Found by its reference; it keeps nothing in the context's state."""
    assert load_app(CLIENT_APP) is client_app.app
    state = context(runtime)
    assert isinstance(state, Context)
    device_of(state).sense(m.SenseRequest("median"))
    assert state.state == RecordDict()
