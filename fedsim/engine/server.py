"""Running a ServerApp in this process."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from fedsim.base.imports import importing


def run_server_app(
    reference: str, grid: Grid, run_config: Mapping[str, str | int | float | bool]
) -> None:
    """Import the ServerApp that "module:attribute" names, and run it over `grid`."""
    module, _, attribute = reference.partition(":")
    with importing():  # only now: the engine's workers start meanwhile
        app = getattr(import_module(module), attribute)
    context = Context(
        run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(run_config)
    )
    app(grid, context)
