"""Clients as Flower nodes, with ids that are the same in every run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedsim.errors import FedsimError

_FIRST_ID = 2  # Flower keeps 1 for the server, and 0 is "unset" in protobuf


@dataclass(frozen=True)
class Node:
    """One client: its Flower id, its place `index` among `count` clients, and its stable key.

    `alone` tells the client app that this client is to share nothing with its neighbours, since a
    worker died while it or one of them ran.
    """

    id: int
    index: int
    count: int
    client: str
    alone: bool = False


def node_id(client: str) -> int:
    """Return the positive 63-bit Flower id of a client key: a hash, so stable between runs."""
    digest = int.from_bytes(hashlib.sha256(client.encode()).digest()[:8], "big")
    return digest % (2**63 - _FIRST_ID) + _FIRST_ID


def nodes_of(clients: Sequence[str], id_of: Callable[[str], int] = node_id) -> dict[int, Node]:
    """Return id -> node, in the order of `clients`; `FedsimError` if two clients share an id."""
    if not clients:
        raise FedsimError("the engine has no clients: name at least one")
    nodes: dict[int, Node] = {}
    for index, client in enumerate(clients):
        node = Node(id_of(client), index, len(clients), client)
        other = nodes.setdefault(node.id, node)
        if other is not node:
            raise FedsimError(
                f"clients {other.client!r} (place {other.index}) and {client!r} (place {index}) "
                "have the same id: give every client a key of its own"
            )
    return nodes
