"""How messages reach clients: one `flwr.serverapp.Grid` per engine, chosen by name.

Importing this package is cheap: Flower, Ray and torch are imported when an engine is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from fedsim.engine.settings import EngineSettings
from fedsim.registry import Registry

if TYPE_CHECKING:
    from flwr.serverapp import Grid

__all__ = ["ENGINES", "EngineSettings", "kept_running", "open_grid"]

RunConfig = Mapping[str, str | int | float | bool]
Engine = Callable[[str, Sequence[str], RunConfig, EngineSettings], "AbstractContextManager[Grid]"]

ENGINES: Registry[Engine] = Registry("engine")


@ENGINES.register("inprocess")
def _inprocess(
    app: str, clients: Sequence[str], run_config: RunConfig, settings: EngineSettings
) -> AbstractContextManager[Grid]:
    """A plain loop in this process: for tests, debuggers and a single core."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from fedsim.engine.inprocess import open_inprocess

    return open_inprocess(app, clients, run_config, settings)


@ENGINES.register("ray")
def _ray(
    app: str, clients: Sequence[str], run_config: RunConfig, settings: EngineSettings
) -> AbstractContextManager[Grid]:
    """Worker processes on every core, of this machine or of a Ray cluster; survives their death."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from fedsim.engine.ray_grid import open_ray

    return open_ray(app, clients, run_config, settings)


@ENGINES.register("flower")
def _flower(
    app: str, clients: Sequence[str], run_config: RunConfig, settings: EngineSettings
) -> AbstractContextManager[Grid]:
    """Flower's own simulation engine on Ray: slower, and no result differs."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from fedsim.engine.flower_grid import open_flower

    return open_flower(app, clients, run_config, settings)


@contextmanager
def kept_running(
    engine_name: str, app: str, clients: int, settings: EngineSettings
) -> Iterator[None]:
    """Keep what an engine starts first (Ray itself) running over several grids, one after another.

    Starting it takes seconds, which runs with many combinations of settings pay once.
    """
    if engine_name not in ("ray", "flower"):
        yield
        return
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from fedsim.engine.ray_cluster import connected

    with connected(settings, clients, app):
        yield


def open_grid(
    engine_name: str,
    app: str,
    clients: Sequence[str],
    run_config: RunConfig,
    settings: EngineSettings,
) -> AbstractContextManager[Grid]:
    """Open the engine of that name; use it as `with open_grid(...) as grid`.

    `app` is the import reference of a `flwr.clientapp.ClientApp`, such as "clients.app:app". Every
    key in `clients` becomes one node, whose `node_config` holds "client" (the key), "partition-id"
    (its place) and "num-partitions". Raises `FedsimError` where the engine cannot be opened.
    """
    return ENGINES[engine_name](app, clients, run_config, settings)
