"""What went wrong: counts that add up, events by stage, equal reasons listed once."""

import html
import json

from report_toys import model, words_study, write_matrix, write_run

from fedsim.report.failures import failures_section
from fedsim.report.page import write_report
from fedsim.results.ledger import Ledger
from fedsim.results.records import Event
from fedsim.results.runs import read_runs

FAILURES = [
    ("bob", "plan", "the model of 'eve' is missing."),
    ("eve", "evaluate", "no answer (attempt 3 of 3, the last)", "dropped"),
    ("joe", "plan", "client 'joe': a budget of 1,000 bytes is too small"),
    ("kim", "plan", "client 'kim': a budget of 2,345,678 bytes is too small"),
    ("lea", "sense", "client 'lea' sent noise", "quarantined"),
]
EVENTS = [
    Event("ann", "sense", 1, "declared crash"),
    Event("ann", "sense", 1, "no answer", "sent again"),
    Event("eve", "evaluate", 1, "no answer"),
    Event("eve", "evaluate", 2, "no answer"),
]


def texts(table):
    return [list(table.heads), *([cell.text for cell in row] for row in table.rows)]


def section_of(path):
    return failures_section(read_runs([path])[0].parts)


def test_nothing_went_wrong(tmp_path):
    run = write_run(tmp_path / "run", words_study())
    assert section_of(run) is None
    assert "What went wrong" not in write_report([run]).path.read_text()


def test_every_client_ended_once(tmp_path):
    run = write_run(tmp_path / "run", words_study(), failures=FAILURES)
    heads, row = texts(section_of(run).endings)
    assert heads == [
        *("finished", "finished in part", "dropped", "quarantined", "failed", "all clients"),
    ]
    assert row == ["1", "1", "1", "1", "2", "6"]


def test_clients_that_a_cut_off_run_did_not_reach(tmp_path):
    run = write_run(tmp_path / "run", words_study(), failures=FAILURES[1:2])
    (run / "timing.json").write_text(json.dumps({"clients": 10}))
    heads, row = texts(section_of(run).endings)
    assert heads == ["finished", "dropped", "quarantined", "failed", "not reached", "all clients"]
    assert row == ["2", "1", "0", "0", "7", "10"]


def test_events_by_stage(tmp_path):
    run = write_run(tmp_path / "run", words_study(), events=EVENTS)
    assert texts(section_of(run).events) == [
        ["event", "sense", "evaluate", "total", "clients"],
        ["declared crash", "1", "0", "1", "1"],
        ["no answer", "1", "2", "3", "2"],
    ]


def test_equal_reasons_are_listed_once(tmp_path):
    found = section_of(write_run(tmp_path / "run", words_study(), failures=FAILURES))
    counts = [(reason.first.client, reason.clients) for reason in found.reasons]
    assert counts == [("joe", 2), ("bob", 1), ("eve", 1), ("lea", 1)]
    assert found.more == 0


def test_many_kinds_of_reasons_are_cut(tmp_path):
    letters = "abcdefghijklmnopqrst"
    failures = [(f"c{i}", "sense", f"reason {x}") for i, x in enumerate(letters)]
    run = write_run(tmp_path / "run", words_study(), failures=failures)
    found = section_of(run)
    assert len(found.reasons) + found.more == len(letters)
    assert len(found.reasons) < 15
    page = write_report([run]).path.read_text()
    assert f"{found.more} rarer reasons are left out." in page


def test_the_page(tmp_path):
    run = write_run(tmp_path / "run", words_study(), failures=FAILURES, events=EVENTS)
    page = html.unescape(write_report([run]).path.read_text())
    assert "<b>joe</b> and 1 more (plan): client 'joe': a budget of 1,000 bytes" in page
    assert "<b>lea</b> (sense): client 'lea' sent noise" in page
    assert "The table failures of ledger.sqlite lists every client." in page
    made = write_report([run])
    assert made.gaps == (
        *("2 clients failed.", "1 client did not answer.", "1 client was put in quarantine."),
        "1 client lost some results.",
    )


def test_each_part_has_rows_of_its_own(tmp_path):
    cells = [(30.0, words_study(30.0)), (40.0, [model("ann", "uniform/minmax", "ann", [1], [9])])]
    path = write_matrix(tmp_path / "run", "clients.budget_mb", cells)
    with Ledger(path / "cells/002/ledger.sqlite") as ledger:
        ledger.fail_client(*FAILURES[2])
    found = section_of(path)
    assert texts(found.endings)[1:] == [["40", "1", "0", "0", "1", "2"]]
    assert found.reasons[0].label == "40 MB"
    assert found.events.rows == ()
