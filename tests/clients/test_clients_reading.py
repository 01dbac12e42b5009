"""Reading of clips ahead, in a thread: the same clips, the same errors, each file read once."""

from __future__ import annotations

import threading
from functools import partial

import numpy as np
import pytest
from fedsim_clients.reading import ClipReader

from fedsim.errors import AudioError


class Disk:
    """Clips by number, and which thread read each."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, str]] = []

    def read(self, n: int) -> np.ndarray:
        self.reads.append((n, threading.current_thread().name.partition("_")[0]))
        if n < 0:
            raise AudioError(f"clip {n} is broken")
        return np.full(4, n, np.float32)

    def clips(self, *numbers: int):
        return [(("ann", str(n)), partial(self.read, n)) for n in numbers]


def test_what_was_read_ahead_is_not_read_again():
    disk, reader = Disk(), ClipReader(1000)
    reader.read_ahead(disk.clips(1, 2))
    for clip in disk.clips(1, 2, 3, 2):
        np.testing.assert_array_equal(reader.get(*clip), np.full(4, int(clip[0][1])))
    assert disk.reads == [(1, "fedsim-clips"), (2, "fedsim-clips"), (3, "MainThread")]


def test_no_clip_is_read_ahead_twice():
    disk, reader = Disk(), ClipReader(1000)
    reader.read_ahead(disk.clips(1, 2))
    reader.get(*disk.clips(1)[0])
    reader.read_ahead(disk.clips(1, 2, 3))
    for clip in disk.clips(1, 2, 3):
        reader.get(*clip)
    assert [n for n, _ in disk.reads] == [1, 2, 3]


def test_an_error_is_raised_in_its_turn():
    disk, reader = Disk(), ClipReader(1000)
    reader.read_ahead(disk.clips(-1, 2))
    assert reader.get(*disk.clips(2)[0])[0] == 2
    for _ in range(2):  # nothing is kept of it: it is tried again
        with pytest.raises(AudioError, match="clip -1 is broken"):
            reader.get(*disk.clips(-1)[0])
    assert disk.reads[-1] == (-1, "MainThread")


def test_what_nobody_asked_for_is_dropped():
    """Else the clips of clients that fail would pile up."""
    disk, reader = Disk(), ClipReader(1000)
    for n in range(20):
        reader.read_ahead(disk.clips(n))
    assert len(reader._ahead) == 1
    assert reader.get(*disk.clips(19)[0])[0] == 19
    assert not reader._ahead


def test_clips_are_bounded():
    disk, reader = Disk(), ClipReader(2 * 16)
    for clip in disk.clips(1, 2, 3, 3, 2, 1):
        reader.get(*clip)
    assert [n for n, _ in disk.reads] == [1, 2, 3, 1]
