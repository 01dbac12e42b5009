"""Ctrl-C and SIGTERM: never lost, and never in the middle of what must be done whole.

Each program that is stopped is a process of its own: a signal that went wrong would stop the tests,
and where Ctrl-C is ignored, as in the background of a shell, it would not arrive.
"""

from __future__ import annotations

import signal
import sys
import threading

from processes import foreground

from fedsim.base.interrupts import held_back, stoppable

START = """
import signal, sys, threading, time
from fedsim.base.interrupts import held_back, stoppable
"""


def printed(program: str, mark) -> list[str]:
    """Run a program to its end, and return the lines that it printed."""
    with foreground([sys.executable, "-c", START + program], mark=str(mark)) as child:
        out, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    return out.splitlines()


DEAF = """
class Deaf:  # is interrupted in its __del__, where Python drops what is raised
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

try:
    with stoppable():
        Deaf()
        for _ in range(100):
            time.sleep(0.1)
        print("not stopped")
except KeyboardInterrupt:
    print("stopped")
"""


def test_an_interrupt_that_python_drops_comes_again(tmp_path):
    assert printed(DEAF, tmp_path) == ["stopped"]


def test_what_else_python_drops_is_reported_as_before(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: reported.append(dropped.exc_type))

    class Broken:
        def __del__(self) -> None:
            raise ValueError("dropped")

    with stoppable():
        Broken()
    assert reported == [ValueError]


TERMINATED = """
before = signal.getsignal(signal.SIGTERM)
try:
    with stoppable():
        signal.raise_signal(signal.SIGTERM)
        print("not stopped")
except KeyboardInterrupt:
    print("stopped", signal.getsignal(signal.SIGTERM) is before)
"""


def test_sigterm_stops_as_ctrl_c_does_and_its_handler_is_put_back(tmp_path):
    assert printed(TERMINATED, tmp_path) == ["stopped True"]


HELD = """
try:
    with stoppable():
        with held_back():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            print("whole")
        print("more")
except KeyboardInterrupt:
    print("stopped")
"""


def test_what_must_be_done_whole_is_done_before_an_interrupt(tmp_path):
    assert printed(HELD, tmp_path) == ["whole", "stopped"]


def test_another_thread_changes_no_handler():
    found = []

    def enter() -> None:
        with stoppable(), held_back():
            found.append((signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)))

    before = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [before]
