"""The engine `flower`: the same apps on Flower's own simulation engine instead of ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsim.engine import ray_cluster
from fedsim.engine.flower_internals import pack_state, server_identity, unpack_state
from fedsim.engine.flower_simulation import FlowerGrid, Workers
from fedsim.engine.nodes import nodes_of
from fedsim.engine.settings import EngineSettings, torch_threads
from fedsim.engine.worker import handle, load_app


class GuardedApp(ClientApp):
    """The client app as every engine of ours runs it: in Flower's workers, errors are replies.

    It travels to a worker with every message, so it holds the app's name and not the app: imported
    there, its module keeps what it has loaded.
    """

    def __init__(self, reference: str, threads: int) -> None:
        super().__init__()
        self._reference = reference
        self._threads = threads

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as `worker.handle` does; a client that fails keeps the state it had."""
        import torch

        torch.set_num_threads(self._threads)
        before = pack_state(context.state)
        reply = handle(load_app(self._reference), message, context)
        if reply.has_error():
            context.state = unpack_state(before)
        return reply


@contextmanager
def open_flower(
    app: str,
    clients: Sequence[str],
    run_config: Mapping[str, str | int | float | bool],
    settings: EngineSettings,
) -> Iterator[FlowerGrid]:
    """Start or join Ray, run Flower's engine in it, and stop what was started at the end."""
    nodes_of(clients)  # refuses keys that occur twice
    load_app(app)  # a mistake is told here, once, and not by every client
    grid = FlowerGrid(clients, run_config)
    with (
        _silenced(),
        torch_threads(settings.threads),
        server_identity(),
        closing(grid),  # after Ray, whose end takes as long as that of Flower's threads
        ray_cluster.connected(settings, len(clients), app) as room,
        grid.served(GuardedApp(app, settings.threads), Workers(room, settings.threads)),
    ):
        yield grid


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep Flower's log off the terminal while open: what matters in it comes as a reply."""
    log = logging.getLogger("flwr")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
