"""How messages reach clients: one `flwr.serverapp.Grid` per engine, chosen by name.

Importing this package is cheap: Flower, Ray and torch are imported when an engine is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.engine.settings import INTERRUPTIBLE, QUIET, EngineSettings, environment
from fedsim.registry import Lazy, Registry

if TYPE_CHECKING:
    from flwr.serverapp import Grid

__all__ = ["ENGINES", "EngineSettings", "kept_running", "open_grid", "run_server"]

RunConfig = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class Engine:
    """One way to run the client app."""

    open: Callable[..., AbstractContextManager[Grid]]
    """f(client app, client keys, run config, `EngineSettings`) -> a context with its Grid."""
    summary: str
    keep: Callable[..., AbstractContextManager[Any]] | None = None
    """f(`EngineSettings`, clients) -> a context that keeps what takes long to start running over
    several grids; None where nothing does."""


ENGINES: Registry[Engine] = Registry("engine")
ENGINES.add(
    "inprocess",
    Engine(
        Lazy("fedsim.engine.inprocess:open_inprocess"),
        summary="A plain loop in this process: for few clients, debuggers and a single core.",
    ),
)
ENGINES.add(
    "ray",
    Engine(
        Lazy("fedsim.engine.ray_grid:open_ray"),
        summary="Worker processes on every core, of this machine or of a Ray cluster; survives"
        " their death.",
        keep=Lazy("fedsim.engine.ray_session:connected"),
    ),
)


@contextmanager
def kept_running(engine_name: str, clients: int, settings: EngineSettings) -> Iterator[None]:
    """Keep what an engine starts first (Ray itself) running over several grids, one after another.

    Starting it takes seconds, which runs with many combinations of settings pay once.
    """
    keep = ENGINES[engine_name].keep
    with _import_settings():
        kept = nullcontext() if keep is None else keep(settings, clients)
    with kept:
        yield


def open_grid(
    engine_name: str,
    app: str,
    clients: Sequence[str],
    run_config: RunConfig,
    settings: EngineSettings,
) -> AbstractContextManager[Grid]:
    """Open the engine of that name; use it as `with open_grid(...) as grid`.

    `app` is the import reference of a `flwr.clientapp.ClientApp`: "package.module:attribute". Every
    key in `clients` becomes one node, whose `node_config` holds "client" (the key), "partition-id"
    (its place) and "num-partitions". Raises `FedsimError` where the engine cannot be opened.
    """
    with _import_settings():
        return ENGINES[engine_name].open(app, clients, run_config, settings)


def run_server(app: str, grid: Grid, run_config: RunConfig) -> None:
    """Run the Flower ServerApp that `app` ("module:attribute") names over an open grid."""
    from fedsim.engine.server import run_server_app

    run_server_app(app, grid, run_config)


@contextmanager
def _import_settings() -> Iterator[None]:
    """Set what Flower and Ray read when they are imported: an engine's module does that while open.

    What they start later inherits `QUIET` alone.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with environment(INTERRUPTIBLE):
        yield
