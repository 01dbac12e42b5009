"""The Ray actors that run clients: begun together, waited for once, stopped at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from fedsim.engine.ray_session import connected, require_running
from fedsim.engine.ray_worker import Worker
from fedsim.engine.settings import EngineSettings
from fedsim.errors import FedsimError

START_SECONDS = 300.0  # importing torch and the app on a cold, slow disk


@contextmanager
def starting_actors(
    app: str,
    clients: int,
    run_config: Mapping[str, str | int | float | bool],
    settings: EngineSettings,
) -> Iterator[Sequence[Any]]:
    """Start or join Ray, begin to start the actors, and stop all of it at the end.

    The actors import torch and the client app meanwhile: see `await_imports`. Raises `FedsimError`
    where Ray or room for them is not to be had.
    """
    with connected(settings, clients) as capacity:
        options = {
            "num_cpus": settings.threads,
            "num_gpus": settings.gpu_share,
            "max_restarts": -1,
            # Lets calls wait for an actor that is being restarted; the methods themselves say 0, so
            # that no batch is sent again behind our back.
            "max_task_retries": -1,
            "runtime_env": capacity.runtime_env,
            "scheduling_strategy": "SPREAD",  # over the machines of a cluster, not one by one
        }
        spawn = ray.remote(Worker).options(**options).remote
        how = dict(run_config), settings.threads, settings.memory_share
        actors = [spawn(app, *how) for _ in range(capacity.workers)]
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
        raise worker_failed(error) from error
    except RayError as error:
        require_running()
        raise FedsimError(
            "a worker process died while it imported the client app (out of memory?): "
            "ask for fewer workers"
        ) from error
    if late:
        raise FedsimError(
            f"{len(late)} of {len(actors)} workers did not start within {START_SECONDS:.0f} s: "
            "ask for fewer workers, or wait until the machine is less busy"
        )


def worker_failed(error: RayTaskError) -> FedsimError:
    """Return what to raise for an error of the worker itself: no client's failure gets here."""
    cause = error.cause
    if isinstance(cause, FedsimError):
        return cause
    text = " ".join(str(cause).split())
    return FedsimError(f"a worker process failed outside any client: {text}; please report this")
