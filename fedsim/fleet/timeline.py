"""What the virtual clock found: one line a client, and what they add up to by class of device."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    import pyarrow as pa

OUTCOMES = ("delivered", "late", "dropped", "quarantined", "battery", "failed")
STRAGGLER = 1.5
"""A straggler's model is ready later than this many times the median of the whole fleet."""
FLEET = "all"
"""The line of `summarize` that is about all classes."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """One client's round. Times are seconds since the round began, spells sums of seconds.

    The spells, from `unavailable_s` to `retry_s`, add up to `end_s`.
    """

    client: str
    device: str
    """Name of its class."""
    outcome: str
    """`delivered`: the server knew of its model before the round closed; `late`: it did not;
    `dropped`: an exchange failed for good; `quarantined`: the server refused its reply;
    `battery`: it could not pay for what was to do; `failed`: it cannot do it, or no plan fits."""
    stopped_at: str | None
    """The stage at which it ended early: sense, plan, personalize or evaluate. A client that was
    `delivered` and did not finish evaluating has one too."""
    start_s: float | None
    """When the device first did anything; None if it never did."""
    ready_s: float | None
    """Time to personalized model: when it was calibrated. None unless `delivered`."""
    end_s: float
    unavailable_s: float
    """Outside the device's windows, with something left to do."""
    download_s: float
    sense_s: float
    upload_s: float
    queue_s: float
    """Waiting for a planner."""
    plan_s: float
    calibrate_s: float
    evaluate_s: float
    retry_s: float
    """Time-outs, back-off and delays."""
    down_bytes: int
    up_bytes: int
    joules: float
    """Of computing and radio."""
    retries: int


@dataclass(frozen=True)
class ServerTotals:
    """What left the server in a round, in three ways of counting, and how busy it was.

    Every count has the requests. `sent_bytes` is what was sent: a device fetches only blobs that it
    lacks, and may stop in the middle. `full_bytes` is what it would be if every device fetched
    every blob of each stage that it began, held or not. `shared_bytes` is what it would be if each
    distinct blob left the server once, for a cache or a multicast group that serves all devices;
    the clock does not run that way.
    """

    sent_bytes: int
    full_bytes: int
    shared_bytes: int
    received_bytes: int
    peak_queue: int
    """Most clients that waited for a planner at one time."""
    closed_s: float | None
    """When the deadline policy closed the round; None if it never did, or everybody had ended."""
    end_s: float
    """When the last client ended."""


@dataclass(frozen=True)
class ClassTimes:
    """The clients of one class of device, or of all (`FLEET`)."""

    device: str
    clients: int
    delivered: int
    late: int
    dropped: int
    quarantined: int
    battery: int
    failed: int
    ready_median_s: float | None
    """Of those delivered, as are the next two; None if nobody was."""
    ready_p90_s: float | None
    ready_max_s: float | None
    stragglers: int
    """Delivered later than 1.5 times the median of the whole fleet."""
    down_bytes: int
    up_bytes: int
    joules: float
    retries: int


def summarize(timelines: Sequence[Timeline]) -> list[ClassTimes]:
    """Return one line for each class of device in order of its name, and last one for all."""
    import numpy as np

    ready = [t.ready_s for t in timelines if t.ready_s is not None]
    limit = STRAGGLER * float(np.median(ready)) if ready else 0.0
    found = [
        _class_times(device, [t for t in timelines if t.device == device], limit)
        for device in sorted({t.device for t in timelines})
    ]
    return [*found, _class_times(FLEET, timelines, limit)]


def _class_times(device: str, timelines: Sequence[Timeline], limit: float) -> ClassTimes:
    import numpy as np

    ended = Counter(t.outcome for t in timelines)
    ready = np.array([t.ready_s for t in timelines if t.ready_s is not None])
    median, p90, most = np.percentile(ready, [50, 90, 100]).tolist() if ready.size else [None] * 3
    return ClassTimes(
        device=device,
        clients=len(timelines),
        **{outcome: ended[outcome] for outcome in OUTCOMES},
        ready_median_s=median,
        ready_p90_s=p90,
        ready_max_s=most,
        stragglers=int((ready > limit).sum()),
        down_bytes=sum(t.down_bytes for t in timelines),
        up_bytes=sum(t.up_bytes for t in timelines),
        joules=sum(t.joules for t in timelines),
        retries=sum(t.retries for t in timelines),
    )


def to_arrow(timelines: Sequence[Timeline], metadata: dict[str, str] | None = None) -> pa.Table:
    """Return the timelines, sorted by client, as an Arrow table with `metadata` in its schema."""
    import pyarrow as pa

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    hints = get_type_hints(Timeline)
    columns = []
    for name in (f.name for f in fields(Timeline)):
        optional = get_origin(hints[name]) is types.UnionType
        kind = get_args(hints[name])[0] if optional else hints[name]
        columns.append(pa.field(name, kinds[kind], nullable=optional))
    ordered = sorted(timelines, key=lambda t: t.client)
    return pa.table(
        {c.name: [getattr(t, c.name) for t in ordered] for c in columns},
        schema=pa.schema(columns).with_metadata(metadata),
    )


def from_arrow(table: pa.Table) -> list[Timeline]:
    """Return the timelines of an Arrow table that `to_arrow` made; other columns are left out."""
    names = [f.name for f in fields(Timeline)]
    return [Timeline(**values) for values in table.select(names).to_pylist()]
