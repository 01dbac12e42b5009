"""The round of a run on the virtual clock: from what the ledger holds to a line a client.

A device gets one model, whatever number of methods the scenario compares: `clock.model` says which.
Its messages count as they were. Where nothing came back from a client, it is taken to have as much
audio as the median client.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

import numpy as np

from fedsim.errors import FedsimError, nearest
from fedsim.fleet.clock import ClockRun, run_clock
from fedsim.fleet.cost import ModelCost, read_cost
from fedsim.fleet.devices import FULL, DeviceProfile
from fedsim.fleet.faults import attempts
from fedsim.fleet.work import STAGES, Attempt, ClientWork, StageWork
from fedsim.quant.calibration import NO_USER_DATA, search_macs
from fedsim.quant.memory import choose_mode
from fedsim.results.folder import RunFolder
from fedsim.results.ledger import Failure, Ledger, Workload
from fedsim.results.timed import TimedRound, write_round
from fedsim.scenario.clients import Devices
from fedsim.scenario.schema import Scenario

MODEL, PROXY, REST = "full-precision model", "8-bit proxy", "rest"
"""Names of blobs that are no packed layers; those are called `layer:bits`."""
_PROXY_BITS = 8
_GROUPED = ("join", "share", "mask", "unmask")
"""Stages of secure aggregation: their bytes count, as if they came with the summary."""


@dataclass(frozen=True)
class Audio:
    """How much a client computes on."""

    clips: float
    seconds: float
    tokens: float
    test_clips: float
    test_seconds: float


def time_round(folder: RunFolder, scenario: Scenario, clients: Sequence[str]) -> ClockRun:
    """Run a finished run's round on the virtual clock, and write its timeline.parquet.

    Args:
        folder: of the run; its scenario has a fleet.
        scenario: the run's.
        clients: the keys of all clients that took part.

    Raises:
        FedsimError: if `clock.model` is none that the scenario makes.
    """
    assert scenario.fleet is not None
    cost, little = read_cost(folder.cost), scenario.fleet.sensing
    run = run_clock(
        _works(folder, scenario, clients, cost),
        _blob_bytes(cost),
        scenario.clock.server(scenario.retries),
    )
    devices = dict(Devices(scenario, clients))
    timed = TimedRound(
        timed_model(scenario),
        run.timelines,
        run.server,
        budgets={c: x.budget_bytes for c, x in devices.items()},
        sensing={c: choose_mode(cost.peaks, x.memory_bytes, little) for c, x in devices.items()},
    )
    write_round(folder.timeline, timed)
    return run


def timed_model(scenario: Scenario) -> str:
    """Return the label of the model that the clock times.

    Raises:
        FedsimError: if `clock.model` is none that the scenario makes.
    """
    from server.plan import all_cells

    labels = [cell.label for cell in all_cells(scenario)]
    model = scenario.clock.model
    if model is None:
        return labels[0]
    if model not in labels:
        raise FedsimError(f"clock.model: no method makes {model!r}: {nearest(model, labels)}")
    return model


def _works(
    folder: RunFolder, scenario: Scenario, clients: Sequence[str], cost: ModelCost
) -> Iterator[ClientWork]:
    from server.plan import NOBODY, all_cells, needs_sensitivity

    label = timed_model(scenario)
    calibration = next(c.calibration for c in all_cells(scenario) if c.label == label)
    with Ledger(folder.ledger) as ledger:
        failures: dict[str, Failure] = {}
        for failure in ledger.failures():
            failures.setdefault(failure.client, failure)
        finished = ledger.finished()
        plans = {
            p.client: p.bits
            for p in ledger.plans()
            if p.method == label and p.tuned_on in (NOBODY, p.client)
        }
        sent = ledger.message_bytes()
        audio = _audio(ledger.workloads(), clients)
    devices = Devices(scenario, clients)
    for client in clients:
        profile = devices.profile(client)
        assert profile is not None
        assert scenario.fleet is not None
        # One that failed before it said who it is stands in the ledger as a node.
        silent = Failure(client, "sense", "it never said who it is", "dropped")
        end = None if client in finished else failures.get(client, silent)
        mode = choose_mode(cost.peaks, int(profile.memory_mb * 2**20), scenario.fleet.sensing)
        maker = _Maker(cost, profile, mode or "streamed", audio[client], sent.get(client, {}))
        bits = plans.get(client, ())
        tries = {
            stage: _tries(scenario, client, stage, end) if mode else (Attempt("failed"),)
            for stage in STAGES
        }
        yield ClientWork(
            client,
            profile,
            sense=maker.sense(tries["sense"], observes=needs_sensitivity(scenario)),
            personalize=maker.personalize(tries["personalize"], bits, calibration),
            evaluate=maker.evaluate(tries["evaluate"], bits),
            planned=end is None or end.stage != "plan",
        )


def _tries(scenario: Scenario, client: str, stage: str, end: Failure | None) -> tuple[Attempt, ...]:
    """Return the attempts of a stage; the last one fails where the client itself gave up there."""
    found = attempts(scenario, client, stage)
    if end is not None and end.outcome == "failed" and end.stage == stage:
        return (*found[:-1], Attempt("failed"))
    return found


def _audio(known: Mapping[tuple[str, str], Workload], clients: Sequence[str]) -> dict[str, Audio]:
    usual = {
        stage: [
            median(getattr(w, name) for (_, s), w in known.items() if s == stage)
            for name in ("clips", "seconds", "tokens")
        ]
        if any(s == stage for _, s in known)
        else [0.0, 0.0, 0.0]
        for stage in ("sense", "evaluate")
    }
    found = {}
    for client in clients:
        each = []
        for stage in ("sense", "evaluate"):
            w = known.get((client, stage))
            each.append(usual[stage] if w is None else [w.clips, w.seconds, w.tokens])
        (clips, seconds, tokens), (test_clips, test_seconds, _) = each
        found[client] = Audio(clips, seconds, tokens, test_clips, test_seconds)
    return found


def _blob_bytes(cost: ModelCost) -> dict[str, int]:
    layers = {
        _blob(i, bits): size
        for bits, sizes in cost.layer_bytes.items()
        for i, size in enumerate(sizes)
    }
    return {MODEL: cost.full_bytes, PROXY: cost.proxy_bytes, REST: cost.rest_bytes, **layers}


@cache
def _blob(layer: int, bits: int) -> str:
    return f"{layer}:{bits}"  # one object for all clients


@dataclass(frozen=True)
class _Maker:
    """Makes the work of one client, stage by stage."""

    cost: ModelCost
    profile: DeviceProfile
    mode: str
    audio: Audio
    sent: Mapping[tuple[str, str], int]
    """(stage, direction) -> bytes of its messages."""

    def sense(self, tries: tuple[Attempt, ...], *, observes: bool) -> StageWork:
        """The full model or its proxy comes; it labels its clips if it has a decoder, and
        observes."""
        passes = observes * (1 + self._labels)
        read = self._streamed(observes, labels=observes and self._labels)
        blob = PROXY if self.mode == "proxy" else MODEL
        return self._stage("sense", tries, (blob,), self._full_macs(passes), read)

    def personalize(
        self, tries: tuple[Attempt, ...], bits: Sequence[int], calibration: str
    ) -> StageWork:
        """The layers of its model come; one pass observes their inputs, then ranges are tried."""
        blobs = (REST, *(_blob(i, b) for i, b in enumerate(bits))) if bits else ()
        if calibration in NO_USER_DATA or not bits:
            return self._stage("personalize", tries, blobs, {}, 0.0)
        positions = self._pass() / [layer.n_weights for layer in self.cost.layers]
        macs = self._full_macs(1)
        macs[FULL] = macs.get(FULL, 0.0) + sum(
            search_macs(calibration, layer, n)
            for layer, n in zip(self.cost.layers, positions.tolist(), strict=True)
        )
        return self._stage("personalize", tries, blobs, macs, self._streamed(True, labels=False))

    def evaluate(self, tries: tuple[Attempt, ...], bits: Sequence[int]) -> StageWork:
        """It transcribes its test clips with its model, layer by layer at its bit depth."""
        audio, macs = self.audio, dict[int, float]()
        tokens = audio.tokens * audio.test_seconds / audio.seconds if audio.seconds else 0.0
        each = self.cost.macs(audio.test_clips, audio.test_seconds, tokens)
        for depth, n in zip(bits, each.tolist(), strict=False):
            macs[depth] = macs.get(depth, 0.0) + n
        return self._stage("evaluate", tries, (), macs, 0.0)

    @property
    def _labels(self) -> bool:
        return self.audio.tokens > 0

    def _pass(self) -> np.ndarray:
        return self.cost.macs(self.audio.clips, self.audio.seconds, self.audio.tokens)

    def _full_macs(self, passes: int) -> dict[int, float]:
        """Return the MACs of passes over the tuning clips, at the depth that the mode computes."""
        proxy = self.mode == "proxy" and _PROXY_BITS in self.profile.macs_per_s
        return {_PROXY_BITS if proxy else FULL: passes * float(self._pass().sum())}

    def _streamed(self, observes: bool, *, labels: bool) -> float:
        """Return the bytes read from storage, by a model that does not fit into memory."""
        if self.mode != "streamed":
            return 0.0
        clips, tokens = self.audio.clips, self.audio.tokens
        read = self.cost.streamed_bytes(clips) * observes
        return read + (self.cost.streamed_bytes(clips, tokens) if labels else 0.0)

    def _stage(
        self,
        stage: str,
        tries: tuple[Attempt, ...],
        blobs: tuple[str, ...],
        macs: dict[int, float],
        read: float,
    ) -> StageWork:
        of = (stage, *_GROUPED) if stage == "sense" else (stage,)
        down, up = (sum(self.sent.get((s, way), 0) for s in of) for way in ("down", "up"))
        return StageWork(
            blobs, {depth: n for depth, n in macs.items() if n}, round(read), down, up, tries
        )
