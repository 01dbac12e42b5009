"""Reports of many clients: made quickly, read quickly, and no larger than those of few."""

import html
import re
import time

import numpy as np
import pytest
from report_toys import LAYERS, model, scenario, write_run
from round_toys import MB, timed, timeline

from fedsim.report.page import write_report
from fedsim.results.records import Event

DEVICES = ("earbuds", "hub", "phone", "watch")


def many(path, clients):
    """A study of so many clients on four classes of device, each with a budget of its own."""
    rng = np.random.default_rng(0)
    models, failures, events, lines = [], [], [], []
    for i in range(clients):
        name, budget = f"client {i:05d}", 1 + 4 * float(rng.random())
        if i % 10:
            of = rng.integers(3, 12, 3)
            for method, share in (("fp32", 0.05), ("uniform/minmax", 0.2), ("myqasr/minmax", 0.1)):
                wrong = rng.binomial(of, share).tolist()
                bits = tuple(rng.integers(2, 9, len(LAYERS)).tolist())
                source = "" if method == "fp32" else name
                more = {"bits": bits} if method == "myqasr/minmax" else {}
                mb = round(0.98 * budget, 6)
                models.append(model(name, method, source, wrong, of.tolist(), budget, mb, **more))
        else:
            failures.append((name, "plan", f"client {name!r}: {budget:.4f} MB are too few"))
        events.append(Event(name, "sense", 1, "no answer", "the answer was lost"))
        ready, outcome = float(rng.lognormal(5, 2)), "delivered"
        if i % 10 == 0:
            ready, outcome = None, "failed"
        lines.append(timeline(name, DEVICES[i % 4], ready, outcome, queue_s=float(rng.random())))
    chosen = scenario(corpus={"path": "org/clips", "group_by": "speaker"})
    round_ = timed(lines, "myqasr/minmax")
    return write_run(path, models, failures=failures, events=events, timed=round_, settings=chosen)


def page_of(path):
    return write_report([path]).path.read_text()


def test_tables_stop_at_fifty_rows_and_say_where_the_others_are(tmp_path):
    page = page_of(many(tmp_path / "run", 200))
    tables = re.findall(r"<table.*?</table>", page, flags=re.S)
    assert max(table.count("<tr>") for table in tables) == 51  # with the head
    text = html.unescape(page)
    assert "The first 50 of 540 rows; results.parquet in the run folder has all." in text
    assert "The first 50 of 200 clients; timeline.parquet in the run folder has all." in text
    assert text.count("are too few") == 1  # one kind of reason
    assert "and 19 more (plan)" in text


def test_figures_hold_no_row_for_each_client(tmp_path):
    page = page_of(many(tmp_path / "run", 500))
    specs = re.findall(r'<script type="application/json" data-for="(\w+)">(.*?)</script>', page)
    assert dict(specs).keys() >= {
        "error_by_size",
        "error_by_client",
        "bits_by_layer",
        "fleet_ready",
    }
    for name, spec in specs:
        assert len(spec) < 60_000, name  # 450 clients of three methods are 200,000


@pytest.mark.slow
def test_ten_thousand_clients(tmp_path):
    run = many(tmp_path / "run", 10_000)
    began = time.process_time()
    made = write_report([run])
    assert time.process_time() - began < 30
    assert made.path.stat().st_size < 5 * MB
