"""What counts as read badly, for parsers whose refusals are a `FedsimError`."""

from __future__ import annotations

import resource
import time
import traceback
from collections.abc import Callable

from benchmarks.fuzz import Finding
from fedsim.errors import FedsimError

SECONDS, MEGABYTES = 5.0, 300
"""An answer that takes more of either is a finding."""


def reads(attempt: Callable[[], object]) -> bool:
    """Return whether an attempt succeeds; a FedsimError is a refusal, anything else is raised."""
    try:
        attempt()
    except FedsimError as error:
        found = wordy(error)
        assert not found, found
        return False
    return True


def wordy(error: FedsimError) -> str:
    """Return what is wrong with a refusal: it must be short, and printable."""
    text = str(error)
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"a refusal that cannot be printed: {text!r:.200}"
    return f"a refusal of {len(text):,} characters" if len(text) > 1500 else ""


def finding(data: bytes, check: Callable[[], str]) -> Finding | None:
    """Return what is wrong with reading `data`.

    `check` reads them and returns what is wrong, or "". An exception, too much time and too much
    memory are findings too.
    """
    before, start = _peak(), time.monotonic()
    try:
        what = check()
    except Exception:
        what = traceback.format_exc()
    took, grown = time.monotonic() - start, _peak() - before
    if not what and took > SECONDS:
        what = f"{took:.1f} seconds"
    if not what and grown > MEGABYTES:
        what = f"{grown:.0f} MB of memory"
    return Finding(data, what) if what else None


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
