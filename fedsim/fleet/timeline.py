"""The results of the virtual clock: one line per client, and summaries by device class."""

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
"""A straggler's model is ready later than this multiple of the median of the whole fleet."""
FLEET = "all"
"""The name of the line of `summarize` for all classes together."""


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
    `dropped`: every attempt of an exchange failed; `quarantined`: the server rejected its reply;
    `battery`: its battery ran out; `failed`: it cannot do the work, or no plan fits."""
    stopped_at: str | None
    """The stage in which it ended early: sense, plan, personalize or evaluate. Also set for one
    that was `delivered` and did not finish evaluating."""
    start_s: float | None
    """When the device first did anything; None if it never did."""
    ready_s: float | None
    """Time to the personalized model: when it was calibrated. None unless `delivered`."""
    end_s: float
    unavailable_s: float
    """Outside the device's windows, with work left to do."""
    download_s: float
    sense_s: float
    upload_s: float
    queue_s: float
    """Waiting for a planner."""
    plan_s: float
    calibrate_s: float
    evaluate_s: float
    retry_s: float
    """Timeouts, back-off and delays."""
    down_bytes: int
    up_bytes: int
    joules: float
    """Spent on computing and radio."""
    retries: int


@dataclass(frozen=True)
class ServerTotals:
    """The bytes that left the server in a round, counted in three ways, and how busy it was.

    Every count includes the requests. `sent_bytes` is what was sent: a device downloads only blobs
    that it lacks, and may stop in the middle. `full_bytes` is the sum if every device downloaded
    every blob of each stage that it began, even one that it held. `shared_bytes` is the sum if each
    distinct blob left the server once, for a cache or a multicast group that serves all devices;
    the clock does not simulate these.
    """

    sent_bytes: int
    full_bytes: int
    shared_bytes: int
    received_bytes: int
    peak_queue: int
    """Maximum number of clients that waited for a planner at the same time."""
    closed_s: float | None
    """When the deadline policy closed the round; None if it did not, or all clients had ended."""
    end_s: float
    """When the last client ended."""


@dataclass(frozen=True)
class ClassTimes:
    """The clients of one device class, or all clients (`FLEET`)."""

    device: str
    clients: int
    delivered: int
    late: int
    dropped: int
    quarantined: int
    battery: int
    failed: int
    ready_median_s: float | None
    """Median over the clients that were delivered, None if there is none; likewise below."""
    ready_p90_s: float | None
    ready_max_s: float | None
    stragglers: int
    """Clients that were delivered later than `STRAGGLER` times the median of the whole fleet."""
    down_bytes: int
    up_bytes: int
    joules: float
    retries: int


def summarize(timelines: Sequence[Timeline]) -> list[ClassTimes]:
    """Return one line per device class, in order of names, and a last one for all clients."""
    import numpy as np

    ready = [line.ready_s for line in timelines if line.ready_s is not None]
    limit = STRAGGLER * float(np.median(ready)) if ready else 0.0
    found = [
        _class_times(device, [line for line in timelines if line.device == device], limit)
        for device in sorted({line.device for line in timelines})
    ]
    return [*found, _class_times(FLEET, timelines, limit)]


def _class_times(device: str, timelines: Sequence[Timeline], limit: float) -> ClassTimes:
    import numpy as np

    ended = Counter(line.outcome for line in timelines)
    ready = np.array([line.ready_s for line in timelines if line.ready_s is not None])
    median, p90, longest = (
        np.percentile(ready, [50, 90, 100]).tolist() if ready.size else [None] * 3
    )
    return ClassTimes(
        device=device,
        clients=len(timelines),
        **{outcome: ended[outcome] for outcome in OUTCOMES},
        ready_median_s=median,
        ready_p90_s=p90,
        ready_max_s=longest,
        stragglers=int((ready > limit).sum()),
        down_bytes=sum(line.down_bytes for line in timelines),
        up_bytes=sum(line.up_bytes for line in timelines),
        joules=sum(line.joules for line in timelines),
        retries=sum(line.retries for line in timelines),
    )


def to_arrow(timelines: Sequence[Timeline], metadata: dict[str, str] | None = None) -> pa.Table:
    """Return the timelines, sorted by client, as an Arrow table with `metadata` in its schema."""
    import pyarrow as pa

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    hints = get_type_hints(Timeline)
    columns = []
    for name in (field.name for field in fields(Timeline)):
        optional = get_origin(hints[name]) is types.UnionType
        kind = get_args(hints[name])[0] if optional else hints[name]
        columns.append(pa.field(name, kinds[kind], nullable=optional))
    ordered = sorted(timelines, key=lambda line: line.client)
    return pa.table(
        {column.name: [getattr(line, column.name) for line in ordered] for column in columns},
        schema=pa.schema(columns).with_metadata(metadata),
    )


def from_arrow(table: pa.Table) -> list[Timeline]:
    """Return the timelines of an Arrow table that `to_arrow` made; other columns are ignored."""
    names = [field.name for field in fields(Timeline)]
    return [Timeline(**values) for values in table.select(names).to_pylist()]
