"""Sending messages and handling replies as they come, whatever the Grid."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from fedsim.messages import Message as Typed
from fedsim.messages import to_record

WINDOW = 128
"""Messages on their way at once: enough to keep workers busy, and memory stays flat."""
PAUSE = 0.2
"""Seconds between two looks at a Grid that had nothing (Flower's own returns at once)."""


@dataclass(frozen=True)
class Outgoing:
    """A typed message and the node it goes to."""

    node: int
    kind: str
    message: Typed


def stream(
    grid: Grid, messages: Iterable[Outgoing], follow_ups: deque[Outgoing]
) -> Iterator[tuple[Outgoing, Message]]:
    """Send `messages` and yield each with its reply, in order of arrival.

    `messages` is read as room becomes free, so it may be a generator over any number of clients.
    What the caller appends to `follow_ups` while it handles a reply is sent before the rest.
    """
    source = iter(messages)
    waiting: dict[str, Outgoing] = {}
    while True:
        batch: list[Outgoing] = []
        while len(waiting) + len(batch) < WINDOW:
            out = follow_ups.popleft() if follow_ups else next(source, None)
            if out is None:
                break
            batch.append(out)
        sent = [
            Message(to_record(out.message), dst_node_id=out.node, message_type=out.kind)
            for out in batch
        ]
        waiting |= dict(zip(grid.push_messages(sent), batch, strict=True))
        if not waiting:
            return
        replies = list(grid.pull_messages(list(waiting)))
        for reply in replies:
            yield waiting.pop(reply.metadata.reply_to_message_id), reply
        if not replies:
            time.sleep(PAUSE)
