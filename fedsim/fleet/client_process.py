"""One client's round as a simpy process, and the state that the clients of a round share.

A client waits for one of its windows, downloads what it needs to sense, senses, uploads its
summary, waits for its plan, downloads the layers that it lacks, calibrates, uploads a receipt, and
evaluates. It computes, downloads and uploads only in its windows, and each of these spends energy
evenly; if the battery runs out in the middle, the client ends there. Downloads share the server's
egress (`fedsim.fleet.egress`); uploads are small, and what the server receives is not limited.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any

import simpy

from fedsim.base.units import MB
from fedsim.fleet.egress import Egress
from fedsim.fleet.timeline import Timeline
from fedsim.fleet.windows import windows_of
from fedsim.fleet.work import ClientWork, ServerClock, StageWork

_MBIT_BYTES = 1e6 / 8
_GMAC = 1e9
_COMPUTING = {"sense": "sense_s", "personalize": "calibrate_s", "evaluate": "evaluate_s"}
_SPELLS = (
    "unavailable_s",
    "download_s",
    "upload_s",
    "queue_s",
    "plan_s",
    "retry_s",
    *_COMPUTING.values(),
)

Steps = Generator[simpy.Event, Any, None]


class _Stopped(Exception):
    """Raised where a client's round ends early; its text is the outcome."""


class Round:
    """The state that the clients of a round share: time, egress, planners, counts of bytes."""

    def __init__(self, server: ServerClock, clients: int) -> None:
        self.env = simpy.Environment()
        self.server = server
        egress = math.inf if server.egress_mbit is None else server.egress_mbit * _MBIT_BYTES
        self.egress = Egress(self.env, egress)
        self.planners = simpy.Resource(self.env, server.planners)
        self.peak_queue = 0
        self.request_bytes = 0
        self.full_bytes = 0
        self.distinct: set[str] = set()
        self.closed_s: float | None = None
        self._enough = self.env.event()
        self._nobody_left = self.env.event()
        self._under_way = clients
        # In floating point 0.1 * 30 is slightly above 3.
        self._to_go = math.ceil((server.goal or 1.0) * clients - 1e-9)

    def count_delivered(self) -> None:
        """Count a client whose model the server knows of."""
        self._to_go -= 1
        if self._to_go == 0:
            self._enough.succeed()

    def count_ended(self) -> None:
        """Count a client that has ended, for whatever reason."""
        self._under_way -= 1
        if self._under_way == 0:
            self._nobody_left.succeed()

    def close(self, clients: list[ClientProcess]) -> Steps:
        """Wait until the policy closes the round, and interrupt the clients without a model.

        If all clients end before that, the round is not closed.
        """
        deadline = self.server.deadline_s
        at_deadline = self._enough if deadline is None else self.env.timeout(deadline)
        match self.server.policy:
            case "drop":
                closes: simpy.Event = at_deadline
            case "extend":
                closes = at_deadline & self._enough
            case "over_select":
                closes = at_deadline | self._enough
            case _:
                return
        yield closes | self._nobody_left
        if not closes.processed:
            return
        self.closed_s = self.env.now
        for client in clients:
            if client.outcome is None:
                client.process.interrupt()


class ClientProcess:
    """One client's process, which adds up the client's time, bytes and joules."""

    def __init__(self, work: ClientWork, blob_bytes: Mapping[str, int], round_: Round) -> None:
        self.outcome: str | None = None
        self._work = work
        self._profile = work.profile
        self._blob_bytes = blob_bytes
        self._round = round_
        self._env = round_.env
        self._windows = windows_of(work.profile.available, round_.server.begin_hour)
        self._held = set(work.held)
        self._spells = dict.fromkeys(_SPELLS, 0.0)
        self._stage: str | None = None
        self._start_s: float | None = None
        self._ready_s: float | None = None
        self._end_s = 0.0
        self._down = self._up = self._joules = 0.0
        self._retries = 0
        self.process = self._env.process(self._run())

    def timeline(self) -> Timeline:
        """Return the timeline of the client; its process must have ended."""
        assert self.outcome is not None
        return Timeline(
            client=self._work.client,
            device=self._profile.device,
            outcome=self.outcome,
            stopped_at=self._stage,
            start_s=self._start_s,
            ready_s=self._ready_s if self.outcome == "delivered" else None,
            end_s=self._end_s,
            down_bytes=round(self._down),
            up_bytes=round(self._up),
            joules=self._joules,
            retries=self._retries,
            **self._spells,
        )

    def _run(self) -> Steps:
        try:
            yield from self._exchange("sense", self._work.sense)
            yield from self._plan()
            if not self._work.planned:
                raise _Stopped("failed")
            yield from self._exchange("personalize", self._work.personalize)
            self.outcome = "delivered"
            self._round.count_delivered()
            yield from self._exchange("evaluate", self._work.evaluate)
            self._stage = None
        except _Stopped as stopped:
            self.outcome = self.outcome or str(stopped)
        except simpy.Interrupt:
            self.outcome = "late"
        self._end_s = self._env.now
        self._round.count_ended()
        self._held.clear()  # with thousands of clients, most of a round's memory

    def _exchange(self, stage: str, work: StageWork) -> Steps:
        self._stage = stage
        has_fetched = has_computed = False
        for i, attempt in enumerate(work.attempts):
            if i:
                self._retries += 1
                yield from self._pause(self._round.server.backoff_s * 2 ** (i - 1))
            if attempt.outcome == "failed":
                yield from self._decline(work)
            if attempt.outcome != "unreached":
                yield from self._fetch(work, first=not has_fetched)
                has_fetched = True
                crashes = attempt.outcome == "crashed"
                if not has_computed:
                    yield from self._compute(stage, work, attempt.fraction if crashes else 1.0)
                has_computed = not crashes
                if has_computed:
                    yield from self._upload(work.up_bytes)
            match attempt.outcome:
                case "ok":
                    return
                case "delayed":
                    yield from self._pause(attempt.delay_s)
                    return
                case "refused":
                    raise _Stopped("quarantined")
                case "unread":
                    continue
            yield from self._pause(self._round.server.timeout_s)
        raise _Stopped("dropped")

    def _plan(self) -> Steps:
        self._stage = "plan"
        with self._round.planners.request() as turn:
            self._round.peak_queue = max(self._round.peak_queue, len(self._round.planners.queue))
            yield from self._spell("queue_s", turn)
            yield from self._spell("plan_s", self._env.timeout(self._round.server.plan_s))

    def _decline(self, work: StageWork) -> Steps:
        """Download a request, and answer that the device cannot serve it."""
        yield from self._fetch(replace(work, blobs=()), first=False)
        yield from self._upload(work.up_bytes)
        raise _Stopped("failed")

    def _pause(self, seconds: float) -> Steps:
        yield from self._spell("retry_s", self._env.timeout(seconds))

    def _spell(self, name: str, until: simpy.Event) -> Steps:
        """Wait for an event that does not depend on the device's windows."""
        begin = self._env.now
        try:
            yield until
        finally:
            self._spells[name] += self._env.now - begin

    def _fetch(self, work: StageWork, *, first: bool) -> Steps:
        """Download a request and the blobs that the device lacks."""
        lacking = [name for name in dict.fromkeys(work.blobs) if name not in self._held]
        size = work.down_bytes + sum(self._blob_bytes[name] for name in lacking)
        self._round.request_bytes += work.down_bytes
        self._round.full_bytes += work.down_bytes
        if first:
            self._round.full_bytes += sum(self._blob_bytes[n] for n in dict.fromkeys(work.blobs))
        self._round.distinct.update(lacking)
        if size:
            yield from self._download(size)
        self._held.update(lacking)

    def _download(self, size: float) -> Steps:
        yield from self._busy("download_s", self._profile.latency_s)
        joules = self._profile.joules_per_mb / MB
        left = paid = min(size, self._joules_left() / joules if joules else math.inf)
        while left > 0:
            opens, closes = self._windows.spell(self._env.now)
            if opens > self._env.now:
                yield from self._spell("unavailable_s", self._env.timeout(opens - self._env.now))
            self._note_start(self._env.now)
            flow = self._round.egress.send(left, self._profile.down_mbit * _MBIT_BYTES)
            until: simpy.Event = flow.done
            if closes < math.inf:
                until = until | self._env.timeout(closes - self._env.now)
            try:
                yield from self._spell("download_s", until)
            finally:
                self._round.egress.stop(flow)
                self._down += left - flow.left
                self._joules += (left - flow.left) * joules
                left = flow.left
        if paid < size:
            raise _Stopped("battery")

    def _upload(self, size: float) -> Steps:
        if size:
            seconds = size / (self._profile.up_mbit * _MBIT_BYTES)
            joules = size * self._profile.joules_per_mb / MB
            yield from self._busy("upload_s", self._profile.latency_s)
            yield from self._busy("upload_s", seconds, joules, size)

    def _compute(self, stage: str, work: StageWork, fraction: float) -> Steps:
        macs, profile = work.macs.items(), self._profile
        seconds = math.fsum(n / profile.macs_per_s[bits] for bits, n in macs)
        seconds += work.read_bytes / (profile.read_mb_s * MB)
        joules = math.fsum(n / _GMAC * profile.joules_per_gmac[bits] for bits, n in macs)
        yield from self._busy(_COMPUTING[stage], seconds * fraction, joules * fraction)
        if stage == "personalize" and fraction == 1.0:
            self._ready_s = self._env.now

    def _busy(self, spell: str, seconds: float, joules: float = 0.0, sent: float = 0.0) -> Steps:
        """Let the device work for `seconds` in its windows, spending joules and sending evenly."""
        paid = min(1.0, self._joules_left() / joules) if joules else 1.0
        begin, worked = self._env.now, 0.0
        try:
            yield self._env.timeout(self._windows.finish(begin, seconds * paid) - begin)
            worked = seconds * paid
        except simpy.Interrupt:
            worked = self._windows.elapsed(self._env.now) - self._windows.elapsed(begin)
            raise
        finally:
            if worked:
                self._note_start(self._windows.spell(begin)[0])
                self._joules += joules * worked / seconds
                self._up += sent * worked / seconds
            self._spells[spell] += worked
            # Rounding may leave less than 0.
            self._spells["unavailable_s"] += max(self._env.now - begin - worked, 0.0)
        if paid < 1:
            raise _Stopped("battery")

    def _joules_left(self) -> float:
        battery = self._profile.battery_j
        return math.inf if battery is None else max(battery - self._joules, 0.0)

    def _note_start(self, t: float) -> None:
        if self._start_s is None:
            self._start_s = t
