"""Which client a Flower node plays, and its device."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from flwr.app import Context

from fedsim.errors import FedsimError
from fedsim.protocol.run_config import read_run_config
from fedsim.speech.clips import ClientData
from fedsim_clients.device import Device
from fedsim_clients.runtime import open_runtime


def device_of(context: Context) -> Device:
    """Return the device that a Flower node plays: the node config names it, the run config sets it
    up."""
    runtime = open_runtime(read_run_config(context))
    key = client_key(context.node_config, runtime.clients)
    if key not in runtime.clients:
        raise FedsimError(
            f"client {key!r} is not in the corpus of this scenario; check the SuperNode's node "
            f"config"
        )
    data = runtime.data(key)
    try:
        runtime = runtime.of(data.language)
    except FedsimError as error:
        raise FedsimError(f"client {key!r}: {error}") from error
    return Device(runtime, data, runtime.mode(key), alone=bool(context.node_config.get("alone")))


def clips_of(context: Context) -> ClientData | None:
    """Return the clips of the client that a node plays, None where the corpus cannot be opened.

    A node that plays no client of the corpus has no clips.
    """
    try:
        clients = open_runtime(read_run_config(context)).clients
        key = _named(context, clients)
        return clients[key] if key in clients else ClientData(key, (), ())
    except Exception:  # only the reason for an earlier error is wanted here
        return None


def _named(context: Context, clients: Collection[str]) -> str:
    """Return the key of the client that a node plays, "" where its config names none."""
    try:
        return client_key(context.node_config, clients)
    except FedsimError:
        return ""


def client_key(node: Mapping[str, str | int | float | bool], clients: Collection[str]) -> str:
    """Return the key of the client that a node with this config plays.

    That is its `client`; in Flower's own simulation, where nodes have no names, the key at
    `partition-id` among `clients` in sorted order.

    Raises:
        FedsimError: if the config has neither, or there is not one node per client.
    """
    if "client" in node:
        return str(node["client"])
    if "partition-id" not in node:
        raise FedsimError(
            "this SuperNode's node config names no client; start it with "
            """--node-config 'client="KEY"'"""
        )
    count = node.get("num-partitions")
    if count != len(clients):
        raise FedsimError(
            f"Flower has {count} SuperNodes and the scenario has {len(clients)} clients; set "
            f"num-supernodes={len(clients)}"
        )
    return sorted(clients)[int(node["partition-id"])]
