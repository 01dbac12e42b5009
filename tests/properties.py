"""On how many examples a property is tried."""

from __future__ import annotations

import os


def examples(count: int) -> int:
    """Return a quarter of `count`; all of them with `FEDSIM_TEST_EXAMPLES=all`."""
    return count if os.environ.get("FEDSIM_TEST_EXAMPLES") == "all" else max(5, count // 4)
