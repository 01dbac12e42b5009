"""What a message costs."""

from __future__ import annotations

import time

from benchmarks.scale.runs import WORKERS


def messages(count: str = "20000") -> None:
    """Echo messages through the Ray engine; print the driver's CPU time per message."""
    import logging

    from flwr.app import ConfigRecord, Message, RecordDict

    from fedsim.engine import EngineSettings, open_grid

    logging.disable(logging.WARNING)
    total = int(count)
    keys = [f"c{i:05d}" for i in range(500)]
    content = RecordDict({"message": ConfigRecord({"values": [0.5] * 41, "name": "median"})})
    settings = EngineSettings(WORKERS, 1, None)
    with open_grid("ray", "benchmarks.echo:app", keys, {}, settings) as grid:
        nodes = list(grid.get_node_ids())
        source = (
            Message(content, dst_node_id=nodes[i % len(nodes)], message_type="query.echo")
            for i in range(total)
        )
        list(_echoed(grid, source, 200))  # start the workers and import their modules
        began, cpu = time.perf_counter(), time.process_time()
        answered = sum(1 for _ in _echoed(grid, source, total))
        wall, spent = time.perf_counter() - began, time.process_time() - cpu
    print(
        f"{answered:,} messages and replies: {1000 * spent / answered:.3f} ms of driver CPU each, "
        f"{answered / wall:,.0f} per second"
    )


def _echoed(grid, source, count):  # type: ignore[no-untyped-def]
    """Send up to `count` messages, at most 128 at a time, and yield the replies."""
    waiting: set[str] = set()
    sent = 0
    while True:
        batch = []
        while len(waiting) + len(batch) < 128 and sent < count:
            message = next(source, None)
            if message is None:
                break
            batch.append(message)
            sent += 1
        waiting |= set(grid.push_messages(batch))
        if not waiting:
            return
        for reply in grid.pull_messages(list(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            yield reply
