"""Which message goes to which worker next: plain queues that know nothing of Ray.

A client prefers the worker that served it last, whose process may still hold its clips and its
model, and so do the clients of its group; a worker with nothing to do takes from the longest queue.
The order in which messages run never changes a result, only how long a run takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from fedsim.engine.grid import Job

LARGEST_BATCH = 32  # beyond this the cost of a call is already spread thin
BATCHES_PER_WORKER = 8  # so that work is shared evenly and replies stream
BATCH_SECONDS = 0.5  # slow messages travel alone: a reply should not wait for its neighbours


class Schedule:
    """Messages that wait, one at most for each node; the others of that node wait behind it.

    `group_of` returns the group of a node, all of whose messages go to one worker; None where each
    node is one of its own, whose messages an idle worker may take over.
    """

    def __init__(
        self, workers: int, batch: int | None, group_of: Callable[[int], int] | None = None
    ) -> None:
        self._batch, self._group_of = batch, group_of or (lambda node: node)
        self._steals = group_of is None  # a group's passes would be computed again
        self._seconds = float("inf")  # one message; unknown until the first has come back
        self._new: deque[Job] = deque()  # clients that no worker has served yet
        self._own: list[deque[Job]] = [deque() for _ in range(workers)]
        self._alone: deque[Job] = deque()  # messages that were lost with a worker
        self._home: dict[int, int] = {}  # group -> worker
        self._behind: dict[int, deque[Job]] = {}  # node with a message under way -> its next ones

    def __len__(self) -> int:
        """Messages that could start now."""
        return len(self._alone) + len(self._new) + sum(map(len, self._own))

    def add(self, job: Job) -> None:
        """Queue a message; it waits while its node has another one under way."""
        if job.node in self._behind:
            self._behind[job.node].append(job)
        else:
            self._behind[job.node] = deque()
            self._queue(job)

    def done(self, job: Job) -> None:
        """Let the node's next message start."""
        behind = self._behind[job.node]
        if behind:
            self._queue(behind.popleft())
        else:
            del self._behind[job.node]

    def retry(self, job: Job, *, alone: bool) -> None:
        """Send a message again; `alone` where it may be the one that killed its worker."""
        if alone:
            self._alone.append(job)
        else:
            self._queue(job)

    def took(self, seconds: float, messages: int) -> None:
        """Learn from a finished batch how long one message takes."""
        latest = seconds / messages
        known = self._seconds < float("inf")
        self._seconds = 0.7 * self._seconds + 0.3 * latest if known else latest

    def take(self, worker: int, *, steal: bool) -> list[Job]:
        """Return the next batch for a worker, or nothing; `steal` where it has no other work."""
        if self._alone:
            return [self._alone.popleft()] if steal else []
        limit = self._limit()
        batch = _pop(self._own[worker], limit)
        while len(batch) < limit and self._new:
            job = self._new.popleft()
            # Another worker may have begun with the group since this one was queued.
            if self._home.setdefault(self._group_of(job.node), worker) == worker:
                batch.append(job)
            else:
                self._queue(job)
        if not batch and steal and self._steals:
            batch = _pop(max(self._own, key=len), limit)
            self._home |= {self._group_of(job.node): worker for job in batch}
        return batch

    def _queue(self, job: Job) -> None:
        home = self._home.get(self._group_of(job.node))
        (self._new if home is None else self._own[home]).append(job)

    def _limit(self) -> int:
        if self._batch is not None:
            return self._batch
        share = len(self) // (len(self._own) * BATCHES_PER_WORKER)
        quick = int(BATCH_SECONDS / max(self._seconds, 1e-6))
        return max(1, min(LARGEST_BATCH, share, quick))


def _pop(queue: deque[Job], count: int) -> list[Job]:
    return [queue.popleft() for _ in range(min(count, len(queue)))]
