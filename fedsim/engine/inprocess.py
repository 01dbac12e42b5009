"""A grid that is a plain loop: for tests, for debuggers, for one core."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from flwr.app import Message
from flwr.clientapp import ClientApp

from fedsim.base.accelerators import deterministic
from fedsim.engine.flower_internals import server_identity
from fedsim.engine.grid import ClientGrid, Job
from fedsim.engine.nodes import Node, nodes_of
from fedsim.engine.settings import EngineSettings, torch_threads
from fedsim.engine.worker import exchange, load_app
from fedsim.errors import FedsimError


class InProcessGrid(ClientGrid):
    """Runs a client at the moment its reply is pulled, one a pull."""

    def __init__(
        self,
        app: ClientApp,
        nodes: Mapping[int, Node],
        run_config: Mapping[str, str | int | float | bool],
    ) -> None:
        super().__init__(nodes, run_config)
        self._app = app
        self._run_config = run_config
        self._node_of: dict[str, int] = {}
        self._queues: dict[int, deque[Job]] = {}

    def _enqueue(self, job: Job) -> None:
        self._node_of[job.message_id] = job.node
        self._queues.setdefault(job.node, deque()).append(job)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Run the first of these messages that still waits and return its reply, alone."""
        for message_id in message_ids:
            if message_id in self._node_of:
                self._run_until(message_id)
                del self._node_of[message_id]
                return [self._take_reply(message_id)]
        return []

    def _run_until(self, message_id: str) -> None:
        """Run the node's messages in the order they were pushed, up to this one."""
        node = self._node_of[message_id]
        while message_id not in self._replies:
            job = self._queues[node].popleft()
            self._finish(job, *self._exchange(job))
        if not self._queues.get(node, True):
            del self._queues[node]

    def _exchange(self, job: Job) -> tuple[bytes, bytes]:
        state = self._states.get(job.node, b"")
        return exchange(self._app, self._nodes[job.node], self._run_config, job.request, state)


@contextmanager
def open_inprocess(
    app: str,
    clients: Sequence[str],
    run_config: Mapping[str, str | int | float | bool],
    settings: EngineSettings,
) -> Iterator[InProcessGrid]:
    """Load the app into this process, with `settings.threads` torch threads until it is closed.

    Raises `FedsimError` where `settings` name a cluster.
    """
    if settings.address is not None:
        raise FedsimError(
            f"engine inprocess joins no Ray cluster: leave the address {settings.address!r} out, "
            "or choose engine ray"
        )
    nodes = nodes_of(clients)
    with torch_threads(settings.threads), deterministic(settings.device), server_identity():
        yield InProcessGrid(load_app(app), nodes, run_config)
