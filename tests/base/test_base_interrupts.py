"""Ctrl-C and SIGTERM: never lost, and never in the middle of what must be done whole."""

from __future__ import annotations

import signal
import sys
import threading
import time

import pytest

from fedsim.base.interrupts import held_back, stoppable


class Deaf:
    """Is interrupted in its `__del__`, where Python drops what is raised."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_python_drops_comes_again():
    done = []

    def program() -> None:
        with stoppable():
            Deaf()
            for _ in range(100):
                time.sleep(0.1)
            done.append("all")

    with pytest.raises(KeyboardInterrupt):
        program()
    assert done == []


def test_what_else_python_drops_is_reported_as_before(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: reported.append(dropped.exc_type))

    class Broken:
        def __del__(self) -> None:
            raise ValueError("dropped")

    with stoppable():
        Broken()
    assert reported == [ValueError]


def test_sigterm_stops_as_ctrl_c_does_and_its_handler_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stoppable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_must_be_done_whole_is_done_before_an_interrupt():
    done = []

    def program() -> None:
        with stoppable():
            with held_back():
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGTERM)
                done.append("whole")
            done.append("more")

    with pytest.raises(KeyboardInterrupt):
        program()
    assert done == ["whole"]


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
