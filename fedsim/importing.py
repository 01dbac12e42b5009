"""Importing large packages quickly."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Switch the garbage collector off while packages are imported.

    Modules, classes and functions are made by the hundred thousand and none of them is garbage,
    but the collector looks through all of them over and over: a quarter of the time that torch and
    transformers take. What was imported is then set apart, so that it never looks through it again.
    """
    was_on, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:  # not each time that everything is there already
            gc.freeze()
        if was_on:
            gc.enable()
