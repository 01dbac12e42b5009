from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack

import pytest
from engine_asks import CLIENTS

from fedsim.engine import EngineSettings, kept_running, open_grid

Open = Callable[..., AbstractContextManager]


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[None]:
    """One Ray for a module's tests: the engine uses a Ray that runs and leaves it running."""
    with kept_running("ray", 8, EngineSettings(workers=8)):
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


@pytest.fixture
def grid_of(request, opened) -> Iterator[Callable]:
    """Name of an engine -> a grid of it on the toy clients."""
    with ExitStack() as stack:
        yield (
            lambda name: (
                request.getfixturevalue("ray_grid")
                if name == "ray"
                else stack.enter_context(opened(name))
            )
        )


@pytest.fixture(params=["inprocess", "ray"])
def grid(request, grid_of):
    """Each engine in turn."""
    return grid_of(request.param)
