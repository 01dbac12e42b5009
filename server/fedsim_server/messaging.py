"""Sending messages and handling replies as they come, whatever the Grid."""

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
"""Messages on their way at once: enough to keep workers busy, and memory stays flat."""
REMEMBERED = 4 * WINDOW
"""Answered messages remembered, so that a second reply to one is known for what it is."""
PAUSE = 0.2
"""Seconds between two looks at a Grid that had nothing (Flower's own returns at once)."""


@dataclass(frozen=True)
class Outgoing:
    """A typed message and the node it goes to.

    `attempt` counts how often it has been sent, `strikes` how often the reply was refused.
    """

    node: int
    kind: str
    message: Typed
    attempt: int = 1
    strikes: int = 0


def stream(
    grid: Grid, messages: Iterable[Outgoing], follow_ups: deque[Outgoing]
) -> Iterator[tuple[Outgoing, Message, bool]]:
    """Send `messages` and yield each with its reply, in order of arrival.

    The third value is True for the first reply to a message; a duplicate, or a reply that comes
    after all, is yielded with what it replies to and False. `messages` is read as room becomes
    free, so it may be a generator over any number of clients. What the caller appends to
    `follow_ups` while it handles a reply is sent before the rest.
    """
    source = iter(messages)
    waiting: dict[str, Outgoing] = {}
    answered: OrderedDict[str, Outgoing] = OrderedDict()
    while True:
        batch: list[Outgoing] = []
        while len(waiting) + len(batch) < WINDOW:
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
        # The latest first: a client that has begun is finished while its clips are at hand.
        replies = list(grid.pull_messages(list(reversed(waiting))))
        for reply in replies:
            replied_to = reply.metadata.reply_to_message_id
            if replied_to in waiting:
                answered[replied_to] = out = waiting.pop(replied_to)
                if len(answered) > REMEMBERED:
                    answered.popitem(last=False)
                yield out, reply, True
            elif replied_to in answered:
                yield answered[replied_to], reply, False
        if not replies:
            time.sleep(PAUSE)
