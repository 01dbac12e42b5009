"""The server app under `flwr run`: it also does what `fedsim run` does before and after a run."""

from __future__ import annotations

import time
from collections.abc import Sequence

from flwr.serverapp import Grid

from fedsim.base.accelerators import deterministic, find_device
from fedsim.engine.flower_internals import nodes_by_partition
from fedsim.engine.settings import torch_threads
from fedsim.errors import FedsimError
from fedsim.protocol.run_config import RunConfig
from fedsim.results.folder import create_run
from fedsim.results.table import stdout_console
from fedsim.runner.show import print_run
from fedsim.runner.single import record
from fedsim.scenario.cells import all_cells, needs_others
from fedsim.scenario.schema import Scenario, scenario_from_json
from fedsim.study.clients import client_keys
from fedsim_server.serve import serve

NODES_S = 5.0
"""Seconds to wait for another node: nodes still register while the server app starts."""


def run_over(grid: Grid, run_config: RunConfig, *, nodes_s: float = NODES_S) -> None:
    """Run a scenario over a grid that Flower opened, and print its table.

    Args:
        grid: Flower's.
        run_config: the scenario, and the folder to make.
        nodes_s: seconds to wait for another node to register.

    Raises:
        FedsimError: for errors that no client can fix, unless there is one node per client, and
            for models that would have to leave a device.
    """
    scenario = scenario_from_json(run_config.scenario)
    clients = client_keys(scenario)
    names = wait_for_nodes(grid, clients, nodes_s)
    deployed = not nodes_by_partition(grid)  # each device is on a machine of its own
    if deployed:
        check_deployed(scenario)
    device = find_device(scenario.engine.device, where="engine.device")
    with torch_threads(scenario.engine.threads), deterministic(device):
        result = record(
            create_run(run_config.run_dir, scenario),
            scenario,
            clients,
            "flower",
            lambda made: serve(grid, made, names, by_value=deployed),
        )
    print_run(scenario, result, stdout_console())
    print(f"\nrun folder: {result.folder.path}")


def check_deployed(scenario: Scenario) -> None:
    """Check that no device is to test a model that stays on another one.

    Raises:
        FedsimError: if one is, since models that a device rounds never leave it.
    """
    rounded = any(cell.rounded_by_device for cell in all_cells(scenario))
    if rounded and needs_others(scenario):
        raise FedsimError(
            "methods: in a deployment a model that a device rounds (moments own or blend) stays on"
            " it, and no other client can test it: use tuned_on: own, or moments: public"
        )


def wait_for_nodes(grid: Grid, clients: Sequence[str], nodes_s: float = NODES_S) -> dict[int, str]:
    """Wait for one node per client; return node id -> client key where the client is known already.

    It is known for nodes that were registered under a client's key, and for all nodes of Flower's
    simulation engine, which play the clients in order.

    Raises `FedsimError` if there is another number of nodes and `nodes_s` seconds bring no change.
    """
    seen, since = -1, time.monotonic()
    while (found := len(list(grid.get_node_ids()))) != len(clients):
        if found != seen:
            seen, since = found, time.monotonic()
        elif time.monotonic() - since > nodes_s:
            raise FedsimError(
                f"the scenario has {len(clients):,} clients and Flower has {found:,} SuperNodes; "
                f"start {len(clients):,}, one per client (in a simulation: flwr run . "
                f"--federation-config num-supernodes={len(clients)})"
            )
        time.sleep(0.1)
    named = {node.node_id: node.name for node in grid.get_nodes() if node.name in clients}
    return named or dict(zip(nodes_by_partition(grid), sorted(clients), strict=False))
