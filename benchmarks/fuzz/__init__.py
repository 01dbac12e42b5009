"""Random damage to what fedsim reads from others: every failure must be one sentence, soon.

One module per parser; each has `try_one`, which makes one damaged input and reads it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """An input that was read badly."""

    content: bytes
    """The input, as it was read."""
    what: str
    """What happened: another exception than fedsim's own, with its traceback; too many seconds; or
    an absurd input that was accepted."""
