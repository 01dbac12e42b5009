"""The fleet's tables and figures against numbers worked out by hand."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from properties import examples
from report_toys import model, scenario, words_study, write_matrix, write_run
from round_toys import MB, SERVER, timed, timeline

from fedsim.base.statistics import ClipCounts, compare
from fedsim.report import clocktables, figures
from fedsim.report.figure_selection import fleet_figures
from fedsim.report.fleet import fleet_section
from fedsim.report.page import write_report
from fedsim.results.runs import read_runs
from fedsim.results.timed import write_round

LINES = [
    timeline("p0", "phone", 10.0),
    timeline("p1", "phone", 30.0, joules=1234.5),
    timeline("p2", "phone", None, "dropped"),
    timeline("w0", "watch", 7200.0, retries=0),
    timeline("w1", "watch", None, "late"),
]
WRONG = {"p0": [1, 0, 0], "p1": [0, 2, 1], "w0": [3, 1, 0], "w1": [0, 1, 0]}
OF = [5, 10, 5]


def study(kept=True):
    """Full precision, the timed model (an error more on the first clip), and another."""
    return [
        model(client, method, "" if method == "fp32" else client, counts, OF, study=kept)
        for client, wrong in WRONG.items()
        for method, counts in {
            "fp32": wrong,
            "uniform/cosine": [5, 5, 5],
            "myqasr/cosine": [wrong[0] + 1, *wrong[1:]],
        }.items()
    ]


def parts_of(*paths):
    return [part for run in read_runs(paths) for part in run.parts]


def section_of(path, lines=LINES, models=None, **more):
    round_ = timed(lines, **more)
    return fleet_section(parts_of(write_run(path, models or study(), timed=round_)))


def texts(table):
    return [list(table.heads), *([cell.text for cell in row] for row in table.rows)]


def test_who_got_a_model(tmp_path):
    heads, *rows = texts(section_of(tmp_path / "run").outcomes)
    assert heads[:4] == ["device", "clients", "budget MB", "delivered"]
    assert heads[4:] == ["late", "dropped", "quarantined", "battery", "failed"]
    assert rows == [
        ["phone", "3", "1.00–3.00", "2", "0", "1", "0", "0", "0"],
        ["watch", "2", "4.00–5.00", "1", "1", "0", "0", "0", "0"],
        ["all", "5", "1.00–5.00", "3", "1", "1", "0", "0", "0"],
    ]


def test_when_and_at_what_cost(tmp_path):
    # Of 10, 30 and 7200 s the median is 30, so that 7200 alone is beyond 45; 0.9-quantiles lie
    # 0.9 of the way from 10 to 30, and 0.8 of that from 30 to 7200.
    assert texts(section_of(tmp_path / "run").times)[1:] == [
        ["phone", "20.0 s", "28.0 s", "30.0 s", "0", "3", "9.0", "1.5", "1,240"],
        ["watch", "2.0 h", "2.0 h", "2.0 h", "1", "1", "6.0", "1.0", "5"],
        ["all", "30.0 s", "1.6 h", "2.0 h", "1", "4", "15.0", "2.5", "1,244"],
    ]


def test_errors_of_the_timed_model_by_class(tmp_path):
    heads, phone, watch, every = texts(section_of(tmp_path / "run").rates)
    assert heads == [
        *("device", "clients", "fp32, WER %", "95 % interval", "timed, WER %", "95 % interval"),
        *("difference", "95 % interval"),
    ]
    # 4, 5 and 9 of 20 words a client; the timed model makes one error more for each.
    assert (phone[:3], phone[4], phone[6]) == (["phone", "2", "10.0"], "15.0", "+5.0")
    assert (watch[:3], watch[4], watch[6]) == (["watch", "2", "12.5"], "17.5", "+5.0")
    assert (every[:3], every[4], every[6]) == (["all", "4", "11.2"], "16.2", "+5.0")
    counts = [
        [
            ClipCounts(c, np.array([w[0] + more, *w[1:]]), np.array(OF))
            for c, w in WRONG.items()
            if c.startswith("p")
        ]
        for more in (1, 0)
    ]
    found = compare(*counts, np.random.default_rng(0))
    assert phone[7] == f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]".replace("-", "−")


def test_without_counts_of_clips_only_what_is_known(tmp_path):
    rows = texts(section_of(tmp_path / "run", models=study(kept=False)).rates)[1:]
    assert rows[0] == ["phone", "2", "10.0", "-", "15.0", "-", "+5.0", "-"]


def test_without_full_precision_and_without_the_timed_model(tmp_path):
    alone = [found for found in study() if found[0].method == "myqasr/cosine"]
    phone = texts(section_of(tmp_path / "alone", models=alone).rates)[1]
    assert (phone[2:4], phone[4], phone[6:]) == (["-", "-"], "15.0", ["-", "-"])
    others = [found for found in study() if found[0].method != "myqasr/cosine"]
    assert section_of(tmp_path / "others", models=others).rates.rows == ()


def test_accuracy_that_falls_is_a_negative_difference(tmp_path):
    models = [
        model(c, method, "" if method == "fp32" else c, wrong)
        for c in ("p0", "p1")
        for method, wrong in (("fp32", [0, 0, 0, 1]), ("myqasr/cosine", [0, 1, 0, 1]))
    ]
    heads, phone, _ = texts(section_of(tmp_path / "run", LINES[:2], models).rates)
    assert heads[2] == "fp32, accuracy %"
    assert (phone[2], phone[4], phone[6]) == ("75.0", "50.0", "−25.0")


def test_how_devices_sensed(tmp_path):
    modes = {"p0": "full", "p1": "full", "p2": "proxy", "w0": None, "w1": "proxy"}
    round_ = replace(timed(LINES), sensing=modes)
    found = fleet_section(parts_of(write_run(tmp_path / "run", study(), timed=round_)))
    assert texts(found.sensing) == [
        ["device", "full", "proxy", "cannot"],
        *(["phone", "2", "1", "0"], ["watch", "0", "1", "1"], ["all", "2", "2", "1"]),
    ]


def test_the_server(tmp_path):
    server = replace(SERVER, closed_s=90.0, received_bytes=MB // 8)
    heads, row = texts(section_of(tmp_path / "run", server=server).servers)
    assert heads[:3] == ["MB sent", "everything to all", "each blob once"]
    assert row == ["30.0", "45.0", "12.5", "0.12", "3", "1.5 min", "2.0 h"]


def test_the_sentence_names_the_policy(tmp_path):
    first = (
        "3 of 5 clients got their personalized model (myqasr/cosine), half of them within 30.0 s"
        " and nine in ten within 1.6 h."
    )
    for i, (policy, goal, deadline_s, closes) in enumerate(
        (
            ("none", None, None, "waits for all clients."),
            (
                "drop",
                None,
                7200,
                "closes after 2.0 h; clients that are not ready by then are late.",
            ),
            ("extend", 0.9, 60, "closes after 1.0 min, or later, as soon as 90 % of the clients"),
            ("over_select", 0.75, None, "closes as soon as 75 % of the clients are ready."),
            ("over_select", 0.75, 90, "are ready, and after 1.5 min at the latest."),
        )
    ):
        clock = {"policy": policy, "goal": goal, "deadline_s": deadline_s}
        chosen = scenario(clock={} if policy == "none" else clock)
        run = write_run(tmp_path / f"{i}", study(), timed=timed(LINES), settings=chosen)
        (sentence,) = fleet_section(parts_of(run)).sentences
        assert sentence.startswith(f"{first} The round ")
        assert closes in sentence


def test_nobody_got_a_model(tmp_path):
    run = write_run(tmp_path / "run", study(), timed=timed([LINES[2], LINES[4]]))
    found = fleet_section(parts_of(run))
    sentence = (
        "0 of 2 clients got their personalized model (myqasr/cosine). The round waits for all"
    )
    assert found.sentences == (f"{sentence} clients.",)
    assert texts(found.times)[-1][1:5] == ["-", "-", "-", "0"]
    page = write_report([run]).path.read_text()
    assert 'id="fleet_ready"' not in page
    assert "nan" not in re.sub(r"<script.*?</script>", "", page, flags=re.S).lower()


def test_a_run_without_a_fleet_says_nothing_of_one(tmp_path):
    run = write_run(tmp_path / "run", words_study())
    assert fleet_section(parts_of(run)) is None
    assert fleet_figures(parts_of(run)) == []
    assert "Who got a model" not in write_report([run]).path.read_text()


def test_a_matrix_has_a_column_for_each_setting(tmp_path):
    path = write_matrix(tmp_path / "run", "seed", [(0, study()), (1, study())])
    for number in (1, 2):
        write_round(path / f"cells/00{number}/timeline.parquet", timed(LINES))
    found = fleet_section(parts_of(path))
    assert [row[:2] for row in texts(found.outcomes)[1:]] == [
        [seed, device] for seed in "01" for device in ("phone", "watch", "all")
    ]
    assert found.sentences[1].startswith("seed 1: 3 of 5 clients")
    names = [figure.name for figure in fleet_figures(parts_of(path))]
    assert names[0] == "fleet_budgets"  # both seeds have the same
    assert names[1:] == ["fleet_ready_1", "fleet_work_1", "fleet_ready_2", "fleet_work_2"]


def test_the_page_has_everything(tmp_path):
    page = write_report([write_run(tmp_path / "run", study(), timed=timed(LINES))]).path.read_text()
    for text in ("3 of 5 clients", "Times are computed by a virtual clock", "How devices sensed"):
        assert text in page
    drawn = re.findall(r'class="chart" id="(fleet_\w+)"', page)
    assert drawn == ["fleet_budgets", "fleet_ready", "fleet_work"]
    assert '<td>p0</td><td>phone</td><td class="n"' in page  # the table by client


def test_shares_of_models_that_are_ready():
    table = clocktables.ready_shares(LINES)
    assert [(r["line"], r["seconds"], r["share"]) for r in table] == [
        *(("phone", 10.0, 0.0), ("phone", 10.0, 33.333), ("phone", 30.0, 66.667)),
        ("phone", 7200.0, 66.667),  # the line goes on to the last model of the fleet
        *(("watch", 7200.0, 0.0), ("watch", 7200.0, 50.0), ("watch", 7200.0, 50.0)),
    ]
    assert clocktables.ready_shares([LINES[2]]) == []
    assert clocktables.ready_shares([timeline("a", "phone", 0.0)])[0]["seconds"] > 0


def test_shares_of_many_clients_are_an_even_choice():
    rng = np.random.default_rng(0)
    ready = rng.lognormal(5, 1, 3_000)
    table = clocktables.ready_shares([timeline(f"{i}", "x", float(s)) for i, s in enumerate(ready)])
    assert len(table) < 250
    exact = [100 * np.mean(ready <= row["seconds"] * 1.0001) for row in table[1:]]
    assert np.allclose(exact, [row["share"] for row in table[1:]], atol=0.2)
    assert table[-1]["share"] == 100


def test_mean_spells():
    lines = [
        timeline("a", "phone", 12.0, upload_s=0.002, queue_s=600.0),
        timeline("b", "phone", 2.0),
        timeline("c", "watch", 102.0),
    ]
    table = clocktables.mean_spells(lines, clocktables.WORK)
    assert [(r["device"], r["line"], r["seconds"]) for r in table] == [
        *(("phone", "download", 5.0), ("phone", "sense", 2.0)),
        *(("watch", "download", 100.0), ("watch", "sense", 2.0)),
    ]  # 1 ms of upload is nothing beside 102 s
    (phone, watch) = clocktables.mean_spells(lines, clocktables.WAITING)
    assert (phone["line"], phone["seconds"], watch["seconds"]) == ("queue of the planner", 300, 0)
    assert clocktables.mean_spells(lines[1:], clocktables.WAITING) == []


@settings(max_examples=examples(25), deadline=None)
@given(st.floats(0.1, 1e6))
@example(119.0)
@example(120.0)
@example(7200.0)
def test_bars_are_in_the_largest_unit_of_which_the_longest_has_two(seconds):
    table = [
        {"device": d, "line": "download", "seconds": s, "order": 0}
        for d, s in (("phone", seconds), ("watch", 0.1))
    ]
    spec = figures.work_by_class(table).to_dict()
    (drawn,) = spec["datasets"].values() if "datasets" in spec else [spec["data"]["values"]]
    units = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}
    name = next((u for u in ("hours", "minutes") if seconds >= 2 * units[u]), "seconds")
    assert spec["encoding"]["x"]["title"] == f"{name} per client"
    assert drawn[0]["time"] == pytest.approx(seconds / units[name], rel=1e-4)


def test_the_figures_can_be_drawn(tmp_path):
    import vl_convert

    lines = [replace(line, unavailable_s=3600.0) for line in LINES]
    drawn = fleet_figures(parts_of(write_run(tmp_path / "run", study(), timed=timed(lines))))
    assert [f.name for f in drawn] == [
        *("fleet_budgets", "fleet_ready", "fleet_work", "fleet_waiting"),
    ]
    for figure in drawn:
        svg = vl_convert.vegalite_to_svg(figure.chart.to_dict())
        assert "NaN" not in svg
        assert all(map(math.isfinite, map(float, re.findall(r'width="([\d.]+)"', svg))))
    times = vl_convert.vegalite_to_svg(drawn[1].chart.to_dict())
    assert [t for t in ("10 s", "1 min", "1 h") if f">{t}</text>" in times] == [
        "10 s",
        "1 min",
        "1 h",
    ]
