"""Starting Ray and its workers beside whatever the driver does meanwhile: it loads its own model.

Ray takes seconds to start, most of which its processes wait for each other, and a worker takes as
long again to import torch and the client app.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from fedsim.engine import ray_cluster
from fedsim.engine.ray_processes import exit_while_starting
from fedsim.engine.ray_worker import Worker
from fedsim.engine.settings import EngineSettings
from fedsim.errors import FedsimError

import ray  # isort: skip  (after ray_cluster, which sets the variables that Ray reads on import)
from ray.exceptions import RayError, RayTaskError  # isort: skip

START_SECONDS = 300.0  # importing torch and the app on a cold, slow disk

Opened = Callable[[], AbstractContextManager[Sequence[Any]]]


@contextmanager
def workers(
    app: str,
    clients: int,
    run_config: Mapping[str, str | int | float | bool],
    settings: EngineSettings,
) -> Iterator[Sequence[Any]]:
    """Start or join Ray, and begin to start actors; stop both at the end.

    Raises `FedsimError` where there is no Ray or no room.
    """
    with ray_cluster.connected(settings, clients, app) as room:
        options = {
            "num_cpus": settings.threads,
            "max_restarts": -1,
            # Lets calls wait for an actor that is being restarted; the methods themselves say 0, so
            # that no batch is sent again behind our back.
            "max_task_retries": -1,
            "runtime_env": room.runtime_env,
            "scheduling_strategy": "SPREAD",  # over the machines of a cluster, not one by one
        }
        spawn = ray.remote(Worker).options(**options).remote
        actors = [spawn(app, dict(run_config), settings.threads) for _ in range(room.workers)]
        try:
            yield actors
        finally:
            for actor in actors:
                ray.kill(actor)


def await_imports(actors: Sequence[Any]) -> None:
    """Wait until each actor has imported the client app; `FedsimError` where one cannot."""
    loads = [actor.load.remote() for actor in actors]
    done, late = ray.wait(loads, num_returns=len(loads), timeout=START_SECONDS)
    try:
        ray.get(done)
    except RayTaskError as error:
        raise broken(error) from error
    except RayError as error:
        raise FedsimError(
            "a worker process died while it imported the client app (out of memory?): "
            "ask for fewer workers"
        ) from error
    if late:
        raise FedsimError(
            f"{len(late)} of {len(actors)} workers did not start within {START_SECONDS:.0f} s: "
            "ask for fewer workers, or wait until the machine is less busy"
        )


def broken(error: RayTaskError) -> FedsimError:
    """Return what a worker itself raised: no client's failure gets here."""
    cause = error.cause
    if isinstance(cause, FedsimError):
        return cause
    text = " ".join(str(cause).split())
    return FedsimError(f"a worker process failed outside any client: {text}; please report this")


class Aside:
    """A context that a thread of its own opens, keeps open and closes.

    One thread for all of it: Ray's processes end with the thread that started them.
    """

    def __init__(self, open_: Opened) -> None:
        while _abandoned:  # there is one Ray in a process
            _abandoned.pop().join()
        self._opened: Future[Sequence[Any]] = Future()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(open_,), daemon=True)
        self._thread.start()

    def result(self) -> Sequence[Any]:
        """Return what the context gives, once it is open; raise what opening it raised."""
        return self._opened.result()

    def close(self) -> None:
        """Have the context closed; wait for it."""
        self._over.set()
        self._thread.join()

    def abandon(self) -> None:
        """Have the context closed; where it is still being opened, do not wait for it."""
        self._over.set()
        if self._opened.done():
            self._thread.join()
        else:
            _abandoned.append(self._thread)

    def _hold(self, open_: Opened) -> None:
        try:
            with open_() as value:
                self._opened.set_result(value)
                self._over.wait()
        except BaseException as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)


_abandoned: list[threading.Thread] = []


@atexit.register
def _end_abandoned() -> None:
    """End a Ray that was still starting at Ctrl-C, when this process ends."""
    if any(thread.is_alive() for thread in _abandoned):
        exit_while_starting()


@contextmanager
def aside(open_: Opened) -> Iterator[Aside]:
    """Open a context in a thread, and close it at the end.

    After Ctrl-C one that is still being opened is not waited for: it closes by itself as soon as it
    is open, or with the process if that ends first.
    """
    thread = Aside(open_)
    try:
        yield thread
    except KeyboardInterrupt:
        thread.abandon()
        raise
    except BaseException:
        thread.close()
        raise
    thread.close()
