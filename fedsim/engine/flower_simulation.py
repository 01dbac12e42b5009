"""Flower's own simulation engine, taken apart: nodes, workers, grid (pinned to flwr 1.41).

Flower's front door, `run_simulation`, starts Ray as it likes, carries no run config, keeps its
workers to itself, so that an interrupted run hangs until the last client has answered, and is
deprecated. What stands behind it is used here as it is: the link state that holds messages, the
threads that carry them, the pool of Ray actors.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

# First of all: it sets the variables that Ray reads when Flower imports it.
from fedsim.engine import ray_cluster

# isort: split
import ray
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import HEARTBEAT_INTERVAL_INF, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.compat.client.run_info_store import DeprecatedRunInfoStore, RunInfo
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.fleet.vce.vce_api import run_api
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState, RunRecord
from flwr.simulation.ray_transport.ray_actor import BasicActorPool, ClientAppActor
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid
from ray.exceptions import RayError

from fedsim.engine.flower_internals import RUN_ID, new_context, new_run
from fedsim.engine.nodes import Node
from fedsim.engine.worker import DEATHS, died
from fedsim.errors import FedsimError

PULL_SECONDS = 0.05  # between two looks for replies, where there was none
_STOP_SECONDS = 10.0
_TASK_ID = 1

RunConfig = Mapping[str, str | int | float | bool]


class Workers(RayBackend):
    """Flower's pool of Ray actors, in a Ray that somebody else starts and ends."""

    def __init__(self, room: ray_cluster.Room, threads: int) -> None:
        # Not by RayBackend's own constructor, which would start Ray and take all of its cores.
        self.pool = None
        self.app_fn = None
        self.built = threading.Event()
        self._workers = room.workers
        self._options: dict[str, Any] = {
            "num_cpus": threads,
            "max_restarts": -1,  # a dead actor goes back into Flower's pool: it must come to life
            "max_task_retries": DEATHS - 1,
            "runtime_env": room.runtime_env,
            "scheduling_strategy": "SPREAD",
        }
        self._actors: tuple[Any, ...] = ()
        self._under_way = 0
        self._closed = False
        self._changed = threading.Condition()

    def build(self, app_fn: Any) -> None:
        """Start the actors; Flower calls this before the first message."""
        self.app_fn = app_fn
        self.pool = BasicActorPool(ClientAppActor, self._options, {})
        self.pool.add_actors_to_pool(self._workers)
        self._actors = tuple(self.pool.pool)
        self.built.set()

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        """Return what an idle actor answers; an error reply where actors died of the message."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the workers have ended")
            self._under_way += 1
        try:
            return super().process_message(message, context)
        except RayError:
            return died(message, str(context.node_config["client"])), context
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify()

    def terminate(self) -> None:
        """End the actors, at work or not; return when no thread waits for one any more.

        A thread that waits for an actor while Ray is shut down waits for ever.
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
            for actor in self._actors:
                ray.kill(actor)
            self._changed.wait_for(lambda: self._under_way == 0, timeout=_STOP_SECONDS)


class FlowerGrid(InMemoryGrid):
    """Flower's grid over clients that its simulation engine plays.

    Node ids are random in every run. Messages that are under way to one node at the same time race
    on its `context.state`: send a client its next message after its reply.
    """

    def __init__(self, clients: Sequence[str], run_config: RunConfig) -> None:
        # Nothing is stored: the name stands for a link state in memory.
        self._states = LinkStateFactory(
            FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()
        )
        super().__init__(self._states, PULL_SECONDS)
        run = new_run(run_config)
        run.primary_task_id, run.federation_id = _TASK_ID, NOOP_FEDERATION_ID
        state = cast(InMemoryLinkState, self.state)
        state.run_ids[RUN_ID] = RunRecord(run=run)
        state.task_store[_TASK_ID] = Task(task_id=_TASK_ID, run_id=RUN_ID)
        self.set_run(run)
        self._stores = {}
        for index, client in enumerate(clients):
            node = Node(self._register(client), index, len(clients), client)
            context = new_context(node, run_config, b"")
            store = DeprecatedRunInfoStore(node.id, context.node_config)
            store.run_infos[RUN_ID] = RunInfo(context, context.run_config)
            self._stores[node.id] = store
        self._stop = threading.Event()
        self._engine: threading.Thread | None = None
        self._error: BaseException | None = None

    def _register(self, client: str) -> int:
        """Announce a client that is always there and return the node id that Flower drew."""
        node = self.state.create_node(
            NOOP_FLWR_AID,
            NOOP_ACCOUNT_NAME,
            secrets.token_bytes(32),  # its public key, which nothing checks in a simulation
            HEARTBEAT_INTERVAL_INF,
            name=client,
        )
        self.state.acknowledge_node_heartbeat(node, HEARTBEAT_INTERVAL_INF)
        return node

    @contextmanager
    def served(self, app: ClientApp, workers: Workers) -> Iterator[None]:
        """Carry messages to the workers and back while open; Flower's threads end a little later.

        Raises `FedsimError` where the workers cannot be started.
        """
        self._engine = threading.Thread(target=self._serve, args=(app, workers), daemon=True)
        self._engine.start()
        try:
            while not workers.built.wait(PULL_SECONDS):
                self._check()
            yield
        finally:
            self._stop.set()
            workers.terminate()  # else a client at work would be waited for

    def close(self) -> None:
        """Wait for Flower's threads, which look once a second whether they may end."""
        if self._engine is not None:
            self._engine.join(_STOP_SECONDS)

    def _serve(self, app: ClientApp, workers: Workers) -> None:
        places = {node: place for place, node in enumerate(self._stores)}
        try:
            run_api(
                lambda: app,
                lambda: workers,
                places,
                self._states,
                self._stores,
                self._stop,
                VceMetrics(),
            )
        except Exception as error:
            self._error = error.__cause__ or error

    def _check(self) -> None:
        """Raise `FedsimError` if the engine has broken down, after which no reply would come."""
        if self._error is not None:
            text = " ".join(str(self._error).split())
            raise FedsimError(
                f"Flower's simulation engine has stopped: {text}; try --engine ray"
            ) from self._error

    def get_node_ids(self) -> list[int]:
        """Return the id of every client, in the order in which the clients were given."""
        return list(self._stores)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there; where there is none, look once more a little later."""
        wanted = set(message_ids)
        replies = list(super().pull_messages(wanted))
        if not replies:
            self._check()
            time.sleep(PULL_SECONDS)
            replies = list(super().pull_messages(wanted))
        return replies
