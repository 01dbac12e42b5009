"""What `flwr run` starts: the server app does for itself what `fedsim run` would do around it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from flwr.serverapp import Grid

from fedsim.engine.flower_internals import nodes_by_partition
from fedsim.engine.settings import torch_threads
from fedsim.errors import FedsimError
from fedsim.protocol.run_config import RunConfig
from fedsim.results.folder import create_run
from fedsim.results.table import stdout_console
from fedsim.run.show import print_run
from fedsim.run.single import record
from fedsim.scenario.schema import scenario_from_json
from fedsim.study.clients import client_keys
from fedsim_server.serve import serve

NODES_SECONDS = 5.0
"""Nodes register while the server app starts: wait this long for one more."""


def run_over(grid: Grid, run_config: RunConfig) -> None:
    """Run a scenario over a grid that Flower opened, and print its table.

    Raises `FedsimError` for what no client could mend, and unless there is one node per client.
    """
    scenario = scenario_from_json(run_config.scenario)
    clients = client_keys(scenario)
    names = _wait_for_nodes(grid, clients)
    deployed = not nodes_by_partition(grid)  # devices on machines of their own
    with torch_threads(scenario.engine.threads):
        result = record(
            create_run(run_config.run_dir, scenario),
            scenario,
            clients,
            "flower",
            lambda made: serve(grid, made, names, by_value=deployed),
        )
    print_run(scenario, result, stdout_console())
    print(f"\nrun folder: {result.folder.path}")


def _wait_for_nodes(grid: Grid, clients: Sequence[str]) -> dict[int, str]:
    """Return node id -> client key of the nodes whose client is known before it answers.

    Those are the nodes that were registered under a client's key, and all nodes of Flower's
    simulation engine, which play the clients in order.
    """
    seen, since = -1, time.monotonic()
    while (found := len(list(grid.get_node_ids()))) != len(clients):
        if found != seen:
            seen, since = found, time.monotonic()
        elif time.monotonic() - since > NODES_SECONDS:
            raise FedsimError(
                f"the scenario has {len(clients):,} clients and Flower {found:,} SuperNodes, each "
                f"of which plays one client: start {len(clients):,} of them, in a simulation by "
                f"flwr run . --federation-config num-supernodes={len(clients)}"
            )
        time.sleep(0.1)
    named = {node.node_id: node.name for node in grid.get_nodes() if node.name in clients}
    return named or dict(zip(nodes_by_partition(grid), sorted(clients), strict=False))
