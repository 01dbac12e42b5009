"""Ray's processes on this machine: those not needed do not start, and none outlives a run.

A raylet that takes more than a second to end is killed by Ray, and one whose driver ends is killed
by the kernel: what it has started itself, agents and workers, would go on for a while.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import ray
from ray._private.node import Node

import psutil  # type: ignore[import-untyped]  # isort: skip  (Ray brings it along)

_END_SECONDS = 1.0


@contextmanager
def bare_head() -> Iterator[None]:
    """Have Ray start without what a run on one machine has no use for.

    That is what adds machines to a cluster, copies logs to the terminal and serves a dashboard:
    three processes that take two seconds of a core to start, and one to stop. Ray has no public way
    to leave them out: where this one has gone, they run.
    """
    names = ("start_monitor", "start_log_monitor", "start_api_server")
    starts = {name: getattr(Node, name) for name in names if hasattr(Node, name)}
    for name in starts:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, start in starts.items():
            setattr(Node, name, start)


def shut_down() -> None:
    """Shut down a Ray that was started here; return when none of its processes is left."""
    started = [p for child in _children() for p in (child, *_below(child))]
    ray.shutdown()
    _kill(started)


def exit_while_starting() -> NoReturn:
    """End this process, in which another thread is still starting Ray, and all that it has started.

    For what is left to do at the exit of a program that was interrupted. Nothing may follow the
    first kill: while Ray connects, that thread holds the interpreter's lock, and for the seconds
    that it would look for what is gone, nothing else would run.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    pids = [p.pid for child in _children() for p in (child, *_below(child))]
    for pid in pids:  # `os.kill` keeps the lock
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os._exit(128 + signal.SIGINT)


def _children() -> list[psutil.Process]:
    """Return the processes of Ray that this one has started."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has ended by itself
            if "/ray/" in " ".join(child.cmdline()):
                found.append(child)
    return found


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _kill(processes: Iterable[psutil.Process]) -> None:
    """Kill what is left of some processes, and wait until it has gone."""
    left = []
    for process in processes:
        with suppress(psutil.Error):  # another with its number is never killed
            process.kill()
            left.append(process)
    psutil.wait_procs(left, timeout=_END_SECONDS)
