"""Paths that can be clicked on a terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def link(path: Path) -> str:
    """Return a path, absolute; on a terminal as a hyperlink to the file or folder.

    The escape sequence is OSC 8, which terminals that do not know it leave out.
    """
    place = path.expanduser().absolute()
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return str(place)
    return f"\x1b]8;;{place.as_uri()}\x1b\\{place}\x1b]8;;\x1b\\"
