"""Units of size and time, and how fedsim writes them."""

from __future__ import annotations

MB = 1 << 20
"""Bytes in a megabyte, everywhere: in budgets, tables, reports and errors."""
_MINUTE, _HOUR = 60.0, 3600.0


def size_words(n_bytes: float) -> str:
    """Return a number of bytes as text: `0.4 MB`, `12.5 MB`, `460 MB`, `1.5 GB`."""
    megabytes = n_bytes / MB
    if megabytes >= 1024:
        return f"{megabytes / 1024:,.1f} GB"
    return f"{megabytes:,.0f} MB" if megabytes >= 100 else f"{megabytes:.1f} MB"


def time_words(seconds: float | None) -> str:
    """Return a time as text, in a suitable unit: `0.25 s`, `12.5 s`, `3.0 min`, `21.9 h`; `-` for
    None."""
    if seconds is None:
        return "-"
    if seconds < 0.95:
        return f"{seconds:.2g} s"
    for unit, name in ((1.0, "s"), (_MINUTE, "min")):
        if round(seconds / unit, 1) < 60:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / _HOUR:,.1f} h"


def count_words(number: int, noun: str) -> str:
    """Return a number with its noun: `1 client`, `1,000 clients`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
