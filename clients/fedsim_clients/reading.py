"""Reading of clips: each once while it is cached, and ahead of a GPU in a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fedsim.base.cache import LRUCache

Key = tuple[str, str]
"""Key of a client, key of its clip."""


@dataclass(eq=False)
class ClipReader:
    """The clips of a process, up to a number of bytes; the least recently used are dropped."""

    limit: float
    """Bytes of clips that are kept."""
    _clips: LRUCache[np.ndarray] = field(init=False)
    _ahead: dict[Key, Future[np.ndarray]] = field(default_factory=dict)
    """What the thread reads, or has read and nobody has asked for."""

    def __post_init__(self) -> None:
        self._clips = LRUCache(self.limit)

    def get(self, key: Key, read: Callable[[], np.ndarray]) -> np.ndarray:
        """Return a clip; what `read` raises is raised here, also where it was read ahead."""

        def wait() -> np.ndarray:
            early = self._ahead.pop(key, None)
            return read() if early is None else early.result()

        return self._clips.get(key, wait)

    def read_ahead(self, clips: Sequence[tuple[Key, Callable[[], np.ndarray]]]) -> None:
        """Read clips in a thread, in this order, while the caller computes; each once.

        What only an earlier call named and nobody has asked for is dropped: its client has failed.
        """
        for key in self._ahead.keys() - dict(clips).keys():
            self._ahead.pop(key).cancel()
        for key, read in clips:
            if key not in self._ahead and key not in self._clips:
                self._ahead[key] = self._thread.submit(read)

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="fedsim-clips")
