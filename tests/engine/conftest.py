from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from engine_asks import CLIENTS

from fedsim.engine import EngineSettings, open_grid

Open = Callable[..., AbstractContextManager]


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[None]:
    """One Ray for a module's tests: the engine uses a Ray that runs and leaves it running."""
    from fedsim.engine import ray_cluster

    with ray_cluster.connected(EngineSettings(workers=6), clients=6):
        yield


@pytest.fixture
def opened(tmp_path, request) -> Open:
    """Open an engine on the toy clients."""

    def open_(engine: str, clients=CLIENTS, app="engine_toys:app", **settings):
        if engine == "ray" and settings.get("address") is None:
            request.getfixturevalue("shared_ray")
        run_config = {"word": "hello", "folder": str(tmp_path)}
        return open_grid(engine, app, clients, run_config, EngineSettings(**settings))

    return open_


@pytest.fixture(scope="module")
def ray_grid(shared_ray) -> Iterator:
    """Two workers for every test that needs no grid of its own: they take seconds to start."""
    config = {"word": "hello", "folder": ""}
    with open_grid("ray", "engine_toys:app", CLIENTS, config, EngineSettings(workers=2)) as grid:
        yield grid


@pytest.fixture(params=["inprocess", "ray"])
def grid(request, opened) -> Iterator:
    """Each engine in turn."""
    if request.param == "ray":
        yield request.getfixturevalue("ray_grid")
    else:
        with opened("inprocess") as grid:
            yield grid
