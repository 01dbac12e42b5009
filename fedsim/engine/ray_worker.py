"""The process at the other end of the Ray grid.

Ray imports this module in the worker, with `OMP_NUM_THREADS` already set by the runtime
environment: it must import neither torch nor the client app before the threads are fixed.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Mapping

import ray
from flwr.clientapp import ClientApp

from fedsim.base.accelerators import is_lost
from fedsim.base.imports import importing
from fedsim.engine.nodes import Node
from fedsim.engine.worker import exchange, load_app


class Worker:
    """A long-lived process that plays one client after another."""

    def __init__(
        self,
        app: str,
        run_config: Mapping[str, str | int | float | bool],
        threads: int,
        memory_share: float | None = None,
    ) -> None:
        with importing():
            import torch

        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        if memory_share is not None:
            torch.cuda.set_per_process_memory_fraction(memory_share)
        self._reference = app
        self._run_config = run_config
        self._app: ClientApp | None = None

    @ray.method(max_task_retries=0)
    def load(self) -> None:
        """Import the client app; `FedsimError` if it cannot be had."""
        self._loaded()

    @ray.method(max_task_retries=0)
    def run(
        self, batch: list[tuple[Node, bytes, bytes]]
    ) -> tuple[list[tuple[bytes, bytes]], float]:
        """Answer (node, request, state) with (reply, state) each, and the seconds all took."""
        app = self._loaded()
        start = time.perf_counter()
        try:
            answers = [
                exchange(app, node, self._run_config, request, state)
                for node, request, state in batch
            ]
        except Exception as error:
            if is_lost(error):  # a process cannot have another context: Ray starts a new one
                os._exit(1)
            raise
        return answers, time.perf_counter() - start

    def _loaded(self) -> ClientApp:
        if self._app is None:  # at the start, and again in a worker that took a dead one's place
            with importing():
                self._app = load_app(self._reference)
            gc.freeze()  # this process is ours alone: no collection looks through the modules again
        return self._app
