"""The printed fleet against numbers worked out by hand."""

import io
from dataclasses import replace

from rich.console import Console
from round_toys import SERVER, timed, timeline

from fedsim.fleet.timeline import summarize
from fedsim.results.fleettable import clients_line, print_fleet, print_fleets, server_line


def printed(show, what, width=80):
    out = io.StringIO()
    show(what, Console(file=out, width=width))
    return out.getvalue()


def row(text, name):
    return next(line.split() for line in text.splitlines() if line.startswith(name))


PHONES = [timeline(f"p{i}", "phone", float(s)) for i, s in enumerate((10, 20, 30, 40, 50))]
WATCHES = [timeline("w0", "watch", 7200.0), timeline("w1", "watch", None, "dropped")]


def test_one_line_per_class_and_one_for_all():
    text = printed(print_fleet, timed([*PHONES, *WATCHES]))
    assert "Fleet on the virtual clock, myqasr/cosine" in text
    # 10 .. 50 s: the 0.9-quantile is 4 * 0.9 = 3.6 steps from the first.
    assert row(text, "phone") == ["phone", "5", "5", "30.0", "s", "46.0", "s", "15", "12"]
    assert row(text, "watch") == ["watch", "2", "1", "2.0", "h", "2.0", "h", "6", "5"]
    assert row(text, "all")[:5] == ["all", "7", "6", "35.0", "s"]
    assert max(map(len, text.splitlines())) <= 80


def test_nobody_was_delivered():
    text = printed(print_fleet, timed([WATCHES[1]]))
    assert row(text, "watch") == ["watch", "1", "0", "-", "-", "3", "2"]
    assert "nan" not in text.lower()


def test_large_fleets_of_many_classes_fit_a_terminal():
    lines = [timeline(f"{i}", f"a_long_name_{i % 10}", 1e5, joules=1e5) for i in range(2000)]
    text = printed(print_fleet, timed(lines))
    assert max(map(len, text.splitlines())) <= 80
    assert row(text, "all") == ["all", "2,000", "2,000", *["27.8", "h"] * 2, "6,000", "200,000,000"]


def test_one_line_per_combination():
    rounds = [({"seed": 1}, timed(PHONES)), ({"seed": 2}, timed(WATCHES))]
    text = printed(print_fleets, rounds)
    assert row(text, "1") == ["1", "5", "5", "30.0", "s", "46.0", "s", "15", "12"]
    assert row(text, "2")[:3] == ["2", "2", "1"]


def test_how_the_clients_ended_in_one_sentence():
    late = [timeline("l0", "watch", None, "late"), timeline("l1", "watch", None, "late")]
    every = summarize([*PHONES, *WATCHES, *late])[-1]
    # Of the six delivered, in 10 .. 50 s and 2 h, the median is 35 s: one took more than 52.5.
    assert clients_line(every) == (
        "Clients: 6 delivered, 2 late, 1 dropped; 1 of the delivered took more than 1.5 times the"
        " median; the results include clients that were late or ran out of battery."
    )
    assert clients_line(summarize(PHONES[:1])[-1]) == "Clients: 1 delivered."
    text = printed(print_fleet, timed([*PHONES, *WATCHES]))
    assert "Clients: 6 delivered, 1 dropped; 1 of" in text


def test_the_server_in_one_sentence():
    assert server_line(SERVER) == (
        "Server: 30.0 MB sent (45.0 MB if every device downloaded everything, 12.5 MB if each"
        " distinct blob was sent once); at most 3 clients waited for a planner; the last client"
        " ended after 2.0 h."
    )
    closed = server_line(replace(SERVER, closed_s=90.0, peak_queue=0))
    assert "no client waited for a planner; the round closed after 1.5 min, and the last" in closed
