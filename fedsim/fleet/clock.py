"""The virtual clock: how long a round takes on a fleet, and what it costs.

No time is measured. A discrete-event simulation, with one process per client
(`fedsim.fleet.client_process`), computes it from MACs per second, bytes over links, queues and
waits. Events at the same time happen in the order of the clients' keys, so that the result does not
depend on the order in which clients are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedsim.fleet.client_process import ClientProcess, Round
from fedsim.fleet.timeline import ServerTotals, Timeline
from fedsim.fleet.work import ClientWork, ServerClock, check_work


@dataclass(frozen=True)
class ClockRun:
    """A round on the virtual clock: the clients in the order of their keys, and the server."""

    timelines: tuple[Timeline, ...]
    server: ServerTotals


def run_clock(
    works: Iterable[ClientWork], blob_bytes: Mapping[str, int], server: ServerClock
) -> ClockRun:
    """Return when each client of a round does what, and the totals of the server.

    Args:
        works: the round of each client, in any order.
        blob_bytes: name -> bytes of every blob that a client needs.
        server: the server's capacity, and when the round ends.

    Raises:
        FedsimError: for a client with MACs at a bit depth for which its device has no speed.
        ValueError: for two clients with the same key, and a blob without a size.
    """
    ordered = sorted(works, key=lambda work: work.client)
    if len({work.client for work in ordered}) < len(ordered):
        raise ValueError("two clients of a round have the same key: give each its own")
    for work in ordered:
        check_work(work, blob_bytes)
    round_ = Round(server, len(ordered))
    clients = [ClientProcess(work, blob_bytes, round_) for work in ordered]
    round_.env.process(round_.close(clients))
    round_.env.run()
    timelines = tuple(client.timeline() for client in clients)
    totals = ServerTotals(
        sent_bytes=sum(line.down_bytes for line in timelines),
        full_bytes=round_.full_bytes,
        shared_bytes=round_.request_bytes + sum(blob_bytes[name] for name in round_.distinct),
        received_bytes=sum(line.up_bytes for line in timelines),
        peak_queue=round_.peak_queue,
        closed_s=round_.closed_s,
        end_s=max((line.end_s for line in timelines), default=0.0),
    )
    return ClockRun(timelines, totals)
