"""Sending messages and handling replies as they come, whatever the Grid."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from fedsim.messages import Message as Typed
from fedsim.messages import to_record

WINDOW = 512
"""Messages on their way at once: enough for any number of workers, and flat memory."""
PAUSE = 0.2
"""Seconds between two looks at a Grid that had nothing (Flower's own returns at once)."""


@dataclass(frozen=True)
class Outgoing:
    """A typed message and the node it goes to."""

    node: int
    kind: str
    message: Typed


def stream(grid: Grid, queue: deque[Outgoing]) -> Iterator[tuple[Outgoing, Message]]:
    """Send what is in `queue` and yield each message with its reply, in order of arrival.

    The caller may append to the queue while it handles a reply: that message is sent too.
    """
    waiting: dict[str, Outgoing] = {}
    while queue or waiting:
        batch = [queue.popleft() for _ in range(min(len(queue), WINDOW - len(waiting)))]
        sent = [
            Message(to_record(out.message), dst_node_id=out.node, message_type=out.kind)
            for out in batch
        ]
        waiting |= dict(zip(grid.push_messages(sent), batch, strict=True))
        replies = list(grid.pull_messages(list(waiting)))
        for reply in replies:
            yield waiting.pop(reply.metadata.reply_to_message_id), reply
        if not replies:
            time.sleep(PAUSE)
