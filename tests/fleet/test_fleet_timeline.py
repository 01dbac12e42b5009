from __future__ import annotations

from dataclasses import fields, replace

import pyarrow as pa
import pytest

from fedsim.fleet import Timeline, summarize
from fedsim.fleet.timeline import from_arrow, to_arrow

SPELLS = {f.name: 0.0 for f in fields(Timeline) if f.name.endswith("_s")}
LINE = Timeline(
    client="a",
    device="phone",
    outcome="delivered",
    stopped_at=None,
    **{**SPELLS, "ready_s": 10.0},
    down_bytes=100,
    up_bytes=10,
    joules=2.5,
    retries=1,
)


def lines(device, ready):
    return [
        replace(LINE, client=f"{device} {i}", device=device, ready_s=float(s))
        for i, s in enumerate(ready)
    ]


def test_a_summary_by_hand():
    # The fleet's median of 1, 2, 3, 4, 6, 6, 7 and 10 is 5: stragglers are later than 7.5.
    late = replace(LINE, client="l", device="watch", outcome="late", ready_s=None)
    gone = [replace(late, outcome=o) for o in ("dropped", "quarantined", "battery", "battery")]
    found = summarize([*lines("phone", [10, 1, 2, 3]), *lines("watch", [7, 6, 6, 4]), late, *gone])
    phone, watch, every = found
    assert [line.device for line in found] == ["phone", "watch", "all"]
    assert (phone.clients, phone.delivered, phone.late) == (4, 4, 0)
    assert (phone.ready_median_s, phone.ready_max_s, phone.stragglers) == (2.5, 10, 1)
    # Between the third and the fourth of four, 0.7 of the way.
    assert phone.ready_p90_s == pytest.approx(3 + 0.7 * 7)
    assert (watch.clients, watch.delivered, watch.late, watch.dropped) == (9, 4, 1, 1)
    assert (watch.quarantined, watch.battery, watch.stragglers) == (1, 2, 0)
    assert (every.clients, every.ready_median_s, every.stragglers) == (13, 5, 1)
    assert (every.down_bytes, every.up_bytes, every.joules, every.retries) == (1300, 130, 32.5, 13)


def test_a_class_of_which_nobody_was_delivered():
    gone = replace(LINE, outcome="dropped", ready_s=None)
    phone, every = summarize([gone])
    assert (phone.ready_median_s, phone.ready_p90_s, phone.ready_max_s) == (None, None, None)
    assert (every.dropped, every.stragglers) == (1, 0)
    assert summarize([])[0].clients == 0


def test_arrow_and_back():
    never = replace(
        LINE, client="0", outcome="late", stopped_at="sense", start_s=None, ready_s=None
    )
    table = to_arrow([LINE, never], {"fedsim.fleet": "toy"})
    assert from_arrow(table) == [never, LINE]
    assert table.schema.metadata == {b"fedsim.fleet": b"toy"}
    assert table.column_names == [f.name for f in fields(Timeline)]
    assert table.schema.field("down_bytes").type == pa.int64()
    assert table.schema.field("joules").type == pa.float64()
    assert [f.name for f in table.schema if f.nullable] == ["stopped_at", "start_s", "ready_s"]
    assert to_arrow([]).schema == table.schema.remove_metadata()
