"""What the engines take from behind Flower's public modules (pinned to flwr 1.41).

Everything else in `fedsim` uses `flwr.app`, `flwr.clientapp` and `flwr.serverapp`. A Flower
upgrade that breaks the engines is mended in this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import (
    message_from_proto,
    message_to_proto,
    recorddict_from_proto,
    recorddict_to_proto,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import NodeInfo  # noqa: F401  (for the grids)
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedsim.engine.nodes import Node

CLIENT_RAISED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
CLIENT_CRASHED = ErrorCode.CLIENT_APP_CRASHED
NO_REPLY = ErrorCode.REPLY_MESSAGE_UNAVAILABLE
LOST = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
)
"""Codes of a message, a reply or a client that is not to be had now: trying again may help."""
RUN_ID = 1  # one run per grid; fixed, because the id travels in every message


def nodes_by_partition(grid: Grid) -> list[int]:
    """Return the node ids of Flower's own simulation in the order of their `partition-id`.

    Nothing where `grid` is not a simulation's: only there are nodes registered one after another.
    """
    from flwr.server.superlink.linkstate import InMemoryLinkState
    from flwr.superlink.grid import InMemoryGrid

    if isinstance(grid, InMemoryGrid) and isinstance(grid.state, InMemoryLinkState):
        return list(grid.state.nodes)
    return []


@contextmanager
def server_identity() -> Iterator[None]:
    """Let this process construct instruction messages, as Flower's ServerApp process may.

    `flwr.app.Message(content, dst_node_id, message_type)` reads who sends it from a global that
    only Flower's own launchers set.
    """
    names = ("_run_id", "_node_id", "_task_id")
    before = [getattr(TaskIdentity, name) for name in names]
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SUPERLINK_NODE_ID, 1
    try:
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(TaskIdentity, name, value)


def new_run(run_config: Mapping[str, str | int | float | bool]) -> Run:
    """Return the run that a grid shows to a ServerApp."""
    run = Run.create_empty(RUN_ID)
    run.override_config = dict(run_config)
    return run


def new_context(
    node: Node, run_config: Mapping[str, str | int | float | bool], state: bytes
) -> Context:
    """Return what Flower hands a ClientApp beside the message; `state` as `pack_state` made it."""
    return Context(
        run_id=RUN_ID,
        node_id=node.id,
        node_config={
            "partition-id": node.index,
            "num-partitions": node.count,
            "client": node.client,
            **({"alone": True} if node.alone else {}),
        },
        state=unpack_state(state),
        run_config=dict(run_config),
    )


def pack_state(state: RecordDict) -> bytes:
    """Serialize a node's `context.state`; an empty state takes no bytes."""
    return recorddict_to_proto(state).SerializeToString(deterministic=True)


def unpack_state(state: bytes) -> RecordDict:
    """Return the state that `pack_state` serialized."""
    return recorddict_from_proto(ProtoRecordDict.FromString(state))


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, which in a deployment the SuperLink does."""
    message.metadata.__dict__["_message_id"] = message_id


def pack(message: Message) -> bytes:
    """Serialize a message to the protobuf bytes that a network would carry."""
    return message_to_proto(message).SerializeToString(deterministic=True)


def unpack(data: bytes) -> Message:
    """Return the message that `pack` serialized."""
    return message_from_proto(ProtoMessage.FromString(data))


def error_reply(message: Message, code: int, reason: str) -> Message:
    """Return the reply that tells the server why `message` has no answer; `reason` is one line."""
    return Message(Error(code, " ".join(reason.split())), reply_to=message)
