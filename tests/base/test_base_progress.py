"""Progress: what it counts, what it shows, and when it is quiet."""

import io

import pytest
from rich.console import Console

from fedsim.base import progress
from fedsim.base.progress import NotebookProgress, Progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def terminal(width=100):
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=20)


def test_rate_and_time_left_by_hand(clock):
    shown = Progress(clock)
    shown.start(1200, ["sense", "personalize", "evaluate"])
    assert (shown.title(), shown.line()) == ("sense (1/3)", "0/1,200 clients")
    clock.now += 50
    shown.advance()
    shown.advance(199)
    shown.fail()
    # 200 in 50 s are 4 a second; the other 1,000 take 250 s
    assert shown.line() == "200/1,200 clients  4 clients/s  4:10 left  1 failed"
    shown.stage("personalize", 10)
    assert (shown.title(), shown.line()) == ("personalize (2/3)", "0/10 clients  1 failed")
    clock.now += 2
    shown.advance(1)
    assert shown.line() == "1/10 clients  0.5 clients/s  0:18 left  1 failed"


def test_hours_and_fast_clients(clock):
    shown = Progress(clock)
    shown.start(40_000, ["sense"])
    clock.now += 1
    shown.advance(4)
    assert "4 clients/s  2:46:39 left" in shown.line()
    shown.advance(2000)
    assert "2,004 clients/s  0:19 left" in shown.line()


def test_a_stage_without_clients_divides_by_nothing(clock):
    shown = Progress(clock)
    shown.start(0, [])
    clock.now += 1
    assert shown.line() == "0/0 clients"


def test_no_terminal_no_output():
    out = io.StringIO()
    with progress.show(Console(file=out)) as shown:
        assert progress.current() is shown
        shown.start(3, ["sense"])
        shown.advance()
        shown.close()
    assert out.getvalue() == ""


@pytest.mark.parametrize("width", [80, 200])
def test_a_terminal_sees_stage_count_and_rate(width):
    console = terminal(width)
    with progress.show(console):
        progress.current().start(3, ["sense", "evaluate"])
        progress.current().stage("evaluate", 3)
        progress.current().advance(2)
        progress.current().fail()
    text = console.file.getvalue()
    assert "…" not in text
    assert "evaluate (2/2)" in text
    assert "2/3 clients" in text
    assert "1 failed" in text
    assert text.rstrip("\r\n").endswith("\x1b[2K")  # the line is taken off at the end


def test_the_display_ends_with_an_exception_and_the_cursor_comes_back():
    console = terminal()

    def interrupted():
        with progress.show(console):
            progress.current().start(3, ["sense"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "\x1b[?25h" in console.file.getvalue()


def test_without_a_display_progress_costs_nothing_and_says_nothing(capsys):
    shown = progress.current()
    assert type(shown) is Progress
    shown.start(3, ["sense"])
    shown.advance()
    shown.fail()
    shown.close()
    assert capsys.readouterr() == ("", "")


def test_displays_nest():
    with progress.show(Console(file=io.StringIO())) as outer:
        with progress.show(Console(file=io.StringIO())) as inner:
            assert progress.current() is inner
        assert progress.current() is outer


def test_a_notebook_sees_the_same_four_times_a_second_and_nothing_afterwards(clock):
    shown = []
    bar = NotebookProgress(shown.append, clock)
    bar.start(3, ["sense <1>", "evaluate"])
    assert '<progress max="3" value="0"></progress>' in shown[-1]
    assert "sense &lt;1&gt; (1/2)" in shown[-1]
    clock.now += 0.125
    bar.advance()
    assert len(shown) == 1
    clock.now += 0.125
    bar.advance()
    assert shown[-1].endswith(" 2/3 clients  8 clients/s  0:00 left</div>")
    bar.advance()
    assert "3/3 clients" in shown[-1]  # the last one at once
    bar.close()
    assert shown[-1] == ""
