"""Importing large packages quickly."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Switch the garbage collector off while packages are imported.

    Modules, classes and functions are made by the hundred thousand and none of them is garbage, but
    the collector looks through all of them over and over: a quarter of the time that torch and
    transformers take.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
