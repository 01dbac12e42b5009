"""The Flower ServerApp: sense, plan, deliver, evaluate; one ledger entry per finished client."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsim.protocol.run_config import is_complete, read_run_config
from fedsim_server.flwr_run import run_over
from fedsim_server.serve import serve

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario that `context.run_config` names over `grid`.

    `fedsim run` makes the run folder and collects the results; under `flwr run` the app does both
    itself.
    """
    run_config = read_run_config(context)
    if is_complete(context.run_config):
        serve(grid, run_config, {node.node_id: node.name for node in grid.get_nodes()})
    else:
        run_over(grid, run_config)
