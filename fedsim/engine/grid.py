"""What the grids of all engines share: requests in, replies out, the state of each node."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedsim.engine.flower_internals import (
    NodeInfo,
    Run,
    new_run,
    pack,
    set_message_id,
    unpack,
)
from fedsim.engine.nodes import Node
from fedsim.errors import FedsimError


@dataclass
class Job:
    """A serialized request in flight, and how many workers have died while handling it."""

    message_id: str
    node: int
    request: bytes
    deaths: int = 0


class ClientGrid(Grid):
    """A Flower `Grid` over clients that this program runs itself.

    A node's `context.state` waits here between messages and travels with each of them: it must be
    tiny (a seed, a path, a counter). What is large belongs in a file or in a module-level cache of
    the client app. At most one message per node is in flight, so nothing races on its state.
    """

    def __init__(
        self, nodes: Mapping[int, Node], run_config: Mapping[str, str | int | float | bool]
    ) -> None:
        self._nodes = nodes
        self._run = new_run(run_config)
        self._sent = 0
        self._states: dict[int, bytes] = {}
        self._replies: dict[str, bytes] = {}

    @abstractmethod
    def _enqueue(self, job: Job) -> None:
        """Take a request over; start it if a worker is free."""

    def set_run(self, run: Run) -> None:
        """Replace the run that the server app sees."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that the server app sees; its `override_config` is the run config."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return `flwr.app.Message(...)`: Flower keeps this method for old server apps."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the id of every client, in the order in which the clients were given."""
        return list(self._nodes)

    def get_nodes(self) -> list[NodeInfo]:
        """Return every client's id and, as the node's name, its key."""
        return [NodeInfo(node_id=n.id, name=n.client) for n in self._nodes.values()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue the messages and return their ids; workers start while a generator still yields.

        Raises `FedsimError` for a message to a node that does not exist.
        """
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        node = message.metadata.dst_node_id
        if node not in self._nodes:
            raise FedsimError(f"there is no node {node}: take ids from grid.get_node_ids()")
        self._sent += 1
        message_id = f"{self._sent:032x}"  # one length for all, so that their sizes agree
        set_message_id(message, message_id)
        self._enqueue(Job(message_id, node, pack(message)))
        return message_id

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push the messages and return the replies that arrive within `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = dict.fromkeys(self.push_messages(messages))
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            for reply in self.pull_messages(waiting):
                del waiting[reply.metadata.reply_to_message_id]
                replies.append(reply)
        return replies

    def _finish(self, job: Job, reply: bytes, state: bytes) -> None:
        """Keep the reply until it is pulled, and the node's state until its next message."""
        if state:
            self._states[job.node] = state
        else:
            self._states.pop(job.node, None)
        self._replies[job.message_id] = reply

    def _take_reply(self, message_id: str) -> Message:
        return unpack(self._replies.pop(message_id))
