"""What became of the processes that a test started."""

from __future__ import annotations

import time
from pathlib import Path

MARK = "FEDSIM_TEST_MARK"
"""An environment variable that a test sets for a child; whatever the child starts inherits it."""


def marked(mark: str, seconds: float = 10.0) -> dict[int, str]:
    """Process id -> command line of those that inherited the mark, after some time to end."""
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
