"""Importing large packages quickly."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Switch the garbage collector off while packages are imported.

    Imports create hundreds of thousands of objects, none of which is garbage, but the collector
    scans them over and over: a quarter of the time that importing torch and transformers takes.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
