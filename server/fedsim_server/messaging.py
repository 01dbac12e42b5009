"""Streams messages to clients and yields their replies as they arrive, over any Grid."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from fedsim.protocol.codec import to_record
from fedsim.protocol.messages import Message as Typed

WINDOW = 128
"""Messages in flight at once: enough to keep workers busy, few enough to keep memory flat."""
PAUSE_S = 0.2
"""Seconds to wait after a pull that returned nothing: Flower's own Grid returns at once."""
_REMEMBERED = 4
"""Windows of answered messages to remember, so that a second reply to one is recognized."""


@dataclass(frozen=True)
class Outgoing:
    """A typed message and the node it goes to.

    `attempt` counts how often the message was sent, `strikes` how often its reply was refused.
    """

    node: int
    kind: str
    message: Typed
    attempt: int = 1
    strikes: int = 0


def stream(
    grid: Grid,
    messages: Iterable[Outgoing],
    follow_ups: deque[Outgoing],
    *,
    window: int = WINDOW,
    pause_s: float = PAUSE_S,
) -> Iterator[tuple[Outgoing, Message, bool]]:
    """Send `messages` and yield each with its reply, in order of arrival.

    The third value is True for the first reply to a message. A second reply, or one that comes
    after the message was given up, is yielded with the message it answers and False.

    Args:
        grid: reaches the clients.
        messages: read as room becomes free, so it may be a generator over any number of clients.
        follow_ups: what the caller appends while it handles a reply is sent before the rest.
        window: the maximum number of messages in flight.
        pause_s: seconds to wait after a pull that returned nothing.
    """
    source = iter(messages)
    waiting: dict[str, Outgoing] = {}
    answered: OrderedDict[str, Outgoing] = OrderedDict()
    while True:
        batch: list[Outgoing] = []
        while len(waiting) + len(batch) < window:
            out = follow_ups.popleft() if follow_ups else next(source, None)
            if out is None:
                break
            batch.append(out)
        sent = [
            Message(
                to_record(out.message),
                dst_node_id=out.node,
                message_type=out.kind,
                group_id=str(out.attempt),
            )
            for out in batch
        ]
        waiting |= dict(zip(grid.push_messages(sent), batch, strict=True))
        if not waiting:
            return
        # The latest first: a client that has begun is finished while its clips are still cached.
        replies = list(grid.pull_messages(list(reversed(waiting))))
        for reply in replies:
            replied_to = reply.metadata.reply_to_message_id
            if replied_to in waiting:
                answered[replied_to] = out = waiting.pop(replied_to)
                if len(answered) > _REMEMBERED * window:
                    answered.popitem(last=False)
                yield out, reply, True
            elif replied_to in answered:
                yield answered[replied_to], reply, False
        if not replies:
            time.sleep(pause_s)
