"""Starts programs as a shell does, and finds the processes that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "FEDSIM_TEST_MARK"
"""An environment variable that a test sets for a child; whatever the child starts inherits it."""


def marked(mark: str, seconds: float = 10.0) -> dict[int, str]:
    """Process id -> command line of those that have the mark; waits up to `seconds` for none."""
    deadline = time.monotonic() + seconds
    while True:
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_text()
            except OSError:
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


@contextmanager
def foreground(words: list[str], mark: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a process group of its own, as from a shell: Ctrl-C reaches all of it.

    Also where Ctrl-C is ignored here, as it is in the background of a shell. What is left of the
    program at the end, after a test that failed, is killed.
    """
    with subprocess.Popen(
        words,
        env={**os.environ, MARK: mark, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        try:
            yield child
        finally:
            for process in marked(mark, seconds=0):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def on_read_only_disk(folder: Path, *argv: str) -> subprocess.CompletedProcess[str] | None:
    """Run a program that sees `folder` on a file system that is read only; None where the system
    cannot show it one."""
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" || exit 99; exec "$@"'
    try:
        done = subprocess.run(
            ["unshare", "--mount", "--map-root-user", "sh", "-c", script, str(folder), *argv],
            capture_output=True,
            text=True,
            timeout=300,
        )
    except FileNotFoundError:
        return None
    return None if done.returncode == 99 or done.stderr.startswith("unshare:") else done
