"""An iterable computed in a thread of its own, a few items ahead of whoever consumes it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")
DEPTH = 2
"""Items that are made before they are asked for: one is ready while the next is made."""
_END = object()


def ahead(items: Iterable[T], depth: int = DEPTH) -> Iterator[T]:
    """Yield `items` in their order, made in one thread, at most `depth` before they are asked for.

    The thread starts with the first item that is asked for. It ends with the items, or when the
    consumer closes or drops this generator: then after the item that it is making. What the items'
    own iterator raises is raised here, after the items before it. The thread has none of the
    consumer's context, such as `torch.no_grad`.
    """
    iterator = iter(items)
    made: SimpleQueue[tuple[object, BaseException | None]] = SimpleQueue()
    room, stopped = threading.Semaphore(depth), threading.Event()

    def make() -> None:
        try:
            while room.acquire() and not stopped.is_set():
                made.put((next(iterator), None))
        except StopIteration:
            made.put((_END, None))
        except BaseException as error:
            made.put((_END, error))

    # A daemon: an interpreter that ends with this generator half consumed must not wait for it.
    thread = threading.Thread(target=make, name="fedsim-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # its traceback holds this frame
            if item is _END:
                return
            room.release()
            yield item  # type: ignore[misc]
            del item  # not held while the consumer waits for the next
    finally:
        stopped.set()
        room.release()
        if thread is not threading.current_thread():  # garbage may be collected in any thread
            thread.join()
