"""What the fuzzers of text and audio share: damage to bytes, and reading under a watch."""

from __future__ import annotations

import random
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from benchmarks.fuzz import Finding
from fedsim.errors import FedsimError

MAX_CPU_S = 5.0
"""Seconds of this process that an answer may take; waiting for a busy machine does not count."""
_MAX_WALL_S = 60
_MAX_GROWTH = 2**30
"""Bytes by which the largest memory of this process may grow over one input."""
RAW = ("pydantic", "Input should", "validation error", "Traceback", "errno")
"""Words of libraries, which no sentence for a user has."""


class TooLongError(Exception):
    """An input that was not read in a minute."""


def watched(content: bytes, read: Callable[[], str | None]) -> Finding | None:
    """Return a finding for what `read` does with an input, or None if it is read well.

    Args:
        content: the input, for the finding.
        read: reads the input; returns what is absurd about its answer, or None. A `FedsimError` is
            a good answer if its text is a short one.
    """
    peak, began = _peak(), time.process_time()
    try:
        with _alarm():
            absurd = read()
    except FedsimError as error:
        absurd = bad_words(str(error))
    except TooLongError:
        return Finding(content, f"no answer in {_MAX_WALL_S} s")
    except Exception:
        return Finding(content, traceback.format_exc())
    if absurd is not None:
        return Finding(content, absurd)
    taken = time.process_time() - began
    if taken > MAX_CPU_S:
        return Finding(content, f"the answer took {taken:.1f} s")
    grown = _peak() - peak
    return Finding(content, f"{grown:,} bytes of memory") if grown > _MAX_GROWTH else None


def bad_words(text: str) -> str | None:
    """Return what is wrong with the text of an error, or None."""
    found = next((word for word in RAW if word in text), None)
    if found is not None:
        return f"a word of a library, {found!r}: {text[:500]}"
    return "the error has no text" if not text.strip() else None


@contextmanager
def _alarm() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(_MAX_WALL_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def damaged(rng: random.Random, content: bytes, times: int = 4) -> bytes:
    """Return bytes with a few of them changed, removed, repeated or put in."""
    data = bytearray(content)
    for _ in range(rng.randint(1, times)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 2, 4, 16, 256)))
        match rng.randrange(5):
            case 0:
                data[at:end] = rng.randbytes(end - at)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end]
            case 3:
                data[at:end] = rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * (end - at)
            case 4:
                del data[at:]
    return bytes(data)
