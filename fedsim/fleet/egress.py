"""The server's outgoing link, which concurrent downloads share max-min fairly.

Every download gets the same rate, but at most that of its device's own link; what slow links leave
unused is shared by the others (water filling: Bertsekas and Gallager 1992, "Data
Networks", section 6.5.2). TCP streams over one link behave like this in the long run.

The rates change whenever a download begins or ends. Following each of n downloads through each of
these changes would cost n^2; instead there are two sets. A download that its own link limits ends
at a known time. All others have one common rate, and so one virtual clock, the integral of that
rate, on which each of them ends at a fixed reading. A change costs O(log n), and as much again for
each download that the new rate moves from one set to the other.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from itertools import count

import simpy


@dataclass(eq=False)
class Flow:
    """One download in progress; the event `done` occurs when its last byte has arrived."""

    done: simpy.Event
    link: float
    """Bytes per second of the device's own link."""
    left: float
    """Bytes that remain: when it began, or when it was stopped; 0 once it is done."""
    own: bool = True
    """Whether its own link limits it."""
    mark: float = 0.0
    """When it ends: a time if its own link limits it, else a reading of the virtual clock."""
    moves: int = 0
    """How often it was moved; entries of a heap with a lower count are void."""


@dataclass(eq=False)
class _Set:
    """Flows in two orders: by when they end, and by their link."""

    by_mark: list[tuple[float, int, int, Flow]] = field(default_factory=list)
    by_link: list[tuple[float, int, int, Flow]] = field(default_factory=list)
    size: int = 0

    def add(self, flow: Flow, link_order: float, tie: int) -> None:
        heapq.heappush(self.by_mark, (flow.mark, tie, flow.moves, flow))
        heapq.heappush(self.by_link, (link_order, tie, flow.moves, flow))
        self.size += 1


def _first(heap: list[tuple[float, int, int, Flow]]) -> Flow | None:
    while heap and heap[0][2] != heap[0][3].moves:
        heapq.heappop(heap)
    return heap[0][3] if heap else None


class Egress:
    """A link of `bytes_per_s` (infinity: no limit) that concurrent flows share."""

    def __init__(self, env: simpy.Environment, bytes_per_s: float) -> None:
        self._env = env
        self._rate = bytes_per_s
        self._own = _Set()
        self._fair = _Set()
        self._own_rate = 0.0
        self._share = math.inf  # bytes per second of each flow that its own link does not limit
        self._virtual = 0.0
        self._at = 0.0  # the time at which the virtual clock was read
        self._ties = count()
        self._wake = 0  # the number of the valid wake-up; earlier ones are void
        self._next_end = math.inf

    def send(self, size: float, link: float) -> Flow:
        """Begin to send `size` bytes to a device with a link of `link` bytes per second."""
        self._advance()
        flow = Flow(self._env.event(), link, size)
        self._put_own(flow, size)
        self._settle()
        return flow

    def stop(self, flow: Flow) -> None:
        """End a flow early; its `left` is then the number of bytes that were not sent."""
        if flow.done.triggered:
            return
        self._advance()
        flow.left = self._take(flow)
        self._settle()

    def _advance(self) -> None:
        if self._fair.size:
            self._virtual += self._share * (self._env.now - self._at)
        self._at = self._env.now

    def _put_own(self, flow: Flow, left: float) -> None:
        flow.own, flow.mark = True, self._env.now + left / flow.link
        self._own.add(flow, -flow.link, next(self._ties))
        self._own_rate += flow.link

    def _put_fair(self, flow: Flow, left: float) -> None:
        flow.own, flow.mark = False, self._virtual + left
        self._fair.add(flow, flow.link, next(self._ties))

    def _take(self, flow: Flow) -> float:
        """Remove a flow from its set and return its remaining bytes."""
        flow.moves += 1
        if not flow.own:
            self._fair.size -= 1
            return max(flow.mark - self._virtual, 0.0)
        self._own.size -= 1
        # A sum of thousands of additions and subtractions drifts; reset it for an empty set.
        self._own_rate = self._own_rate - flow.link if self._own.size else 0.0
        return max(flow.mark - self._env.now, 0.0) * flow.link

    def _fair_share(self) -> float:
        """Return the rate left for each flow that its own link does not limit; below 0: nothing."""
        over = self._rate - self._own_rate
        if self._fair.size:
            return over / self._fair.size
        return math.inf if over >= 0 else over

    def _settle(self) -> None:
        """Sort the flows again: exactly those with links faster than the share get the share."""
        # Neither loop lowers the share, so the second one keeps what the first one did.
        while (fast := _first(self._own.by_link)) and fast.link > self._fair_share():
            self._put_fair(fast, self._take(fast))
        while (slow := _first(self._fair.by_link)) and slow.link <= self._fair_share():
            self._put_own(slow, self._take(slow))
        self._share = self._fair_share()
        self._schedule()

    def _schedule(self) -> None:
        own, fair = _first(self._own.by_mark), _first(self._fair.by_mark)
        next_end = own.mark if own is not None else math.inf
        if fair is not None:
            next_end = min(next_end, self._env.now + (fair.mark - self._virtual) / self._share)
        if next_end == self._next_end:
            return
        self._next_end = next_end
        self._wake += 1
        if next_end < math.inf:
            wake = self._wake
            event = self._env.timeout(max(next_end - self._env.now, 0.0))
            assert event.callbacks is not None
            event.callbacks.append(lambda _: self._finish(wake))

    def _finish(self, wake: int) -> None:
        if wake != self._wake:
            return
        # Rounding may wake it slightly before the time that it was set for.
        now = max(self._env.now, self._next_end)
        self._next_end = math.inf
        fair = _first(self._fair.by_mark)
        is_fair = fair is not None and self._at + (fair.mark - self._virtual) / self._share <= now
        self._advance()
        if fair is not None and is_fair:
            self._virtual = max(self._virtual, fair.mark)
        for heap, limit in ((self._own.by_mark, now), (self._fair.by_mark, self._virtual)):
            while (flow := _first(heap)) is not None and flow.mark <= limit:
                self._take(flow)
                flow.left = 0.0
                flow.done.succeed()
        self._settle()
