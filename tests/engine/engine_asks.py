"""How the engine tests ask clients and read their answers."""

from __future__ import annotations

from flwr.app import ConfigRecord, Message, RecordDict

CLIENTS = [f"user-{i:02d}" for i in range(20)]


def ask(node: int, message_type: str, value: float | str = 0) -> Message:
    content = RecordDict({"ask": ConfigRecord({"value": value})})
    return Message(content, node, message_type)


def ask_all(grid, message_type: str, values=None) -> list[Message]:
    """Ask every client; return the replies in the clients' order."""
    nodes = grid.get_node_ids()
    values = values or [0] * len(nodes)
    pairs = zip(nodes, values, strict=True)
    replies = list(grid.send_and_receive(ask(node, message_type, value) for node, value in pairs))
    return sorted(replies, key=lambda reply: nodes.index(reply.metadata.src_node_id))


def said(reply: Message) -> dict:
    return dict(reply.content.config_records["answer"])
