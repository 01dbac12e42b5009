"""Made-up rounds on the virtual clock, without a run."""

from __future__ import annotations

from dataclasses import fields, replace

from fedsim.fleet import ServerTotals, Timeline
from fedsim.results.timed import TimedRound

MB = 2**20
_DURATIONS = {f.name: 0.0 for f in fields(Timeline) if f.name.endswith("_s")}
SERVER = ServerTotals(
    sent_bytes=30 * MB,
    full_bytes=45 * MB,
    shared_bytes=12 * MB + 2**19,
    received_bytes=1000,
    peak_queue=3,
    closed_s=None,
    end_s=7200.0,
)


def timeline(client, device, ready, outcome="delivered", **more):
    """The timeline of a client; `ready` is None, or seconds, all but two of them of download."""
    end = 0.0 if ready is None else ready
    durations = {"download_s": max(0.0, end - 2), "sense_s": min(2.0, end), "ready_s": ready}
    made = Timeline(
        client=client,
        device=device,
        outcome=outcome,
        stopped_at=None if outcome == "delivered" else "sense",
        **{**_DURATIONS, "start_s": 0.0, "end_s": end, **durations},
        **{"down_bytes": 3 * MB, "up_bytes": MB // 2, "joules": 2.5, "retries": 1},
    )
    return replace(made, **more)


def timed(timelines, model="myqasr/cosine", server=SERVER, sensing="full"):
    """A round with these timelines; budgets are 1, 2, ... MB."""
    clients = [line.client for line in timelines]
    return TimedRound(
        model,
        tuple(sorted(timelines, key=lambda line: line.client)),
        server,
        budgets={client: (i + 1) * MB for i, client in enumerate(clients)},
        sensing=dict.fromkeys(clients, sensing),
    )
