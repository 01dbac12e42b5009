"""A grid over long-lived Ray actors, on one machine or on a cluster.

Flower's own simulation engine asks every node for mail all the time; here the driver hands batches
to workers that are free, and does nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from flwr.app import Message
from ray.exceptions import RayError, RayTaskError

from fedsim.base.accelerators import deterministic
from fedsim.engine.flower_internals import pack, server_identity, unpack
from fedsim.engine.grid import ClientGrid, Job
from fedsim.engine.nodes import Node, nodes_of
from fedsim.engine.ray_actors import await_imports, starting_actors, worker_failed
from fedsim.engine.ray_session import require_running
from fedsim.engine.schedule import Schedule
from fedsim.engine.settings import EngineSettings, torch_threads
from fedsim.engine.worker import DEATHS, died

PULL_SECONDS = 0.2  # at most so long does one pull wait for a reply


@dataclass
class Flight:
    """A batch at a worker; `innocent` once an earlier batch of that worker was lost with it."""

    worker: int
    jobs: list[Job]
    innocent: bool = False


class RayGrid(ClientGrid):
    """Hands batches to Ray actors and streams their replies.

    The actors may still be starting: whoever asks for the nodes or sends a message waits for them.
    """

    def __init__(
        self,
        actors: Sequence[Any],
        nodes: Mapping[int, Node],
        run_config: Mapping[str, str | int | float | bool],
        settings: EngineSettings,
    ) -> None:
        super().__init__(nodes, run_config)
        self._actors = actors
        self._started = False
        self._group = settings.group
        grouped = None if settings.group == 1 else self._group_of
        self._schedule = Schedule(len(actors), settings.batch, grouped)
        self._apart: set[int] = set()  # groups that may have killed a worker
        self._loads = [0] * len(actors)
        self._flights: dict[Any, Flight] = {}  # in the order of dispatch
        self._open: set[str] = set()  # ids pushed and not pulled

    def get_node_ids(self) -> list[int]:
        """Return the id of every client, once each worker has imported the client app.

        Raises `FedsimError` where one cannot.
        """
        self._await_start()
        return super().get_node_ids()

    def _enqueue(self, job: Job) -> None:
        self._await_start()
        self._open.add(job.message_id)
        self._schedule.add(job)
        # No stealing yet: the next message that is pushed may belong to the idle worker.
        self._dispatch(steal=False)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are ready; wait up to `PULL_SECONDS` where none is."""
        wanted = self._open.intersection(message_ids)
        if not wanted:
            return []
        self._dispatch(steal=True)
        self._collect(0.0 if wanted.intersection(self._replies) else PULL_SECONDS)
        self._dispatch(steal=True)
        ready = [message_id for message_id in self._replies if message_id in wanted]
        self._open.difference_update(ready)
        return [self._take_reply(message_id) for message_id in ready]

    def _await_start(self) -> None:
        if not self._started:
            await_imports(self._actors)
            self._started = True

    def _dispatch(self, *, steal: bool) -> None:
        """Give every idle worker a batch, first of its own clients' messages."""
        idle = [worker for worker, load in enumerate(self._loads) if load == 0]
        for stealing in (False, True) if steal else (False,):
            for worker in idle:
                if self._loads[worker] == 0:
                    self._send(worker, self._schedule.take(worker, steal=stealing))
        # One batch in reserve, so that no worker idles while the server app thinks about a reply;
        # not near the end, where it would wait behind a slow one while another worker is free.
        for worker, load in enumerate(self._loads):
            if load == 1 and len(self._schedule) > 2 * len(self._actors):
                self._send(worker, self._schedule.take(worker, steal=False))

    def _send(self, worker: int, jobs: list[Job]) -> None:
        if jobs:
            batch = [
                (self._node(job), job.request, self._states.get(job.node, b"")) for job in jobs
            ]
            self._flights[self._actors[worker].run.remote(batch)] = Flight(worker, jobs)
            self._loads[worker] += 1

    def _node(self, job: Job) -> Node:
        """Return the node of a job: alone, where what its group shares may have killed a worker."""
        return replace(self._nodes[job.node], alone=self._group_of(job.node) in self._apart)

    def _group_of(self, node: int) -> int:
        return self._nodes[node].index // self._group

    def _collect(self, seconds: float) -> None:
        """Take in every batch that is back, waiting up to `seconds` for the first."""
        if not self._flights:
            return
        refs = list(self._flights)
        ready, _ = ray.wait(refs, num_returns=1, timeout=seconds)
        if ready:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in sorted(ready, key=refs.index):
            flight = self._flights.pop(ref)
            self._loads[flight.worker] -= 1
            try:
                answers, seconds_taken = ray.get(ref)
            except RayTaskError as error:
                raise worker_failed(error) from error
            except RayError:
                require_running()
                self._lost(flight)
                continue
            self._schedule.took(seconds_taken, len(flight.jobs))
            for job, (reply, state) in zip(flight.jobs, answers, strict=True):
                self._finish(job, reply, state)
                self._schedule.done(job)

    def _lost(self, flight: Flight) -> None:
        """Send a batch again whose worker died; Ray has started the worker anew."""
        for other in self._flights.values():
            # Batches run in order: while this one ran, the others had not begun.
            other.innocent |= other.worker == flight.worker
        if not flight.innocent:
            # All of a group, also with later messages: each would kill another worker.
            self._apart |= {self._group_of(job.node) for job in flight.jobs}
        for job in flight.jobs:
            # Any of a batch may be the one: the death counts for each, and each runs alone now.
            job.deaths += not flight.innocent
            if job.deaths < DEATHS:
                self._schedule.retry(job, alone=not flight.innocent)
            else:
                self._give_up(job)

    def _give_up(self, job: Job) -> None:
        reply = died(unpack(job.request), self._nodes[job.node].client)
        self._finish(job, pack(reply), self._states.get(job.node, b""))
        self._schedule.done(job)


@contextmanager
def open_ray(
    app: str,
    clients: Sequence[str],
    run_config: Mapping[str, str | int | float | bool],
    settings: EngineSettings,
) -> Iterator[RayGrid]:
    """Start or join Ray, begin to start the workers, and stop what was started at the end."""
    nodes = nodes_of(clients)
    with (
        starting_actors(app, len(nodes), run_config, settings) as actors,
        torch_threads(settings.threads),  # which imports torch: the actors do meanwhile, too
        deterministic(settings.device),
        server_identity(),
    ):
        yield RayGrid(actors, nodes, run_config, settings)
