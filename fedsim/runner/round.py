"""The round of a run on the virtual clock: from the records of the ledger to one line per client.

A device gets one model, however many methods the scenario compares: the one that `clock.model`
names. Its messages have the sizes that they had in the run. A client that never replied is assumed
to have as much audio as the median client.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from fedsim.base.units import MB
from fedsim.fleet.clock import ClockRun, run_clock
from fedsim.fleet.work import STAGES, Attempt, ClientWork
from fedsim.quant.memory import choose_mode
from fedsim.results.folder import RunFolder
from fedsim.results.ledger import Ledger
from fedsim.results.records import Failure, Workload
from fedsim.results.timed import TimedRound, write_round
from fedsim.runner.device_workload import GROUPED, Audio, DeviceWorkload, blob_bytes
from fedsim.scenario.cells import all_cells, needs_profiles, timed_model
from fedsim.scenario.schema import Scenario
from fedsim.study.cost import ModelCost, read_cost
from fedsim.study.devices import Devices
from fedsim.study.faults import attempts

_SILENT = ("lost", "unreached", "crashed")
"""Outcomes of an attempt after which the server has no reply."""


def time_round(folder: RunFolder, scenario: Scenario, clients: Sequence[str]) -> ClockRun:
    """Time a finished run's round on the virtual clock, and write its timeline.parquet.

    Args:
        folder: the folder of the run.
        scenario: the scenario of the run, which has a fleet.
        clients: the keys of all clients that took part.

    Raises:
        FedsimError: if no method of the scenario makes `clock.model`.
    """
    assert scenario.fleet is not None
    cost, fallback = read_cost(folder.cost), scenario.fleet.sensing
    run = run_clock(
        _works(folder, scenario, clients, cost),
        blob_bytes(cost),
        scenario.clock.server(scenario.retries),
    )
    devices = dict(Devices(scenario, clients))
    spoken = _languages(folder, scenario) if cost.by_language else {}
    peaks = {client: cost.of(spoken.get(client, "")).peaks for client in clients}
    timed = TimedRound(
        timed_model(scenario),
        run.timelines,
        run.server,
        budgets={c: x.budget_bytes for c, x in devices.items()},
        sensing={c: choose_mode(peaks[c], x.memory_bytes, fallback) for c, x in devices.items()},
    )
    write_round(folder.timeline, timed)
    return run


def _languages(folder: RunFolder, scenario: Scenario) -> dict[str, str]:
    """Return client -> its language, of those that a model was planned for."""
    with Ledger(folder.ledger) as ledger:
        plans = ledger.planned(timed_model(scenario))
    return {client: plan.language for client, plan in plans.items()}


def _works(
    folder: RunFolder, scenario: Scenario, clients: Sequence[str], cost: ModelCost
) -> Iterator[ClientWork]:
    label = timed_model(scenario)
    calibration = next(c.calibration for c in all_cells(scenario) if c.label == label)
    with Ledger(folder.ledger) as ledger:
        failures: dict[str, Failure] = {}
        for failure in ledger.failures():
            failures.setdefault(failure.client, failure)
        finished = ledger.finished()
        plans = ledger.planned(label)
        sent = ledger.message_bytes()
        audio = _audio(ledger.workloads(), clients)
    observes = needs_profiles(scenario) and scenario.privacy.chosen.gives != "public"
    devices = Devices(scenario, clients)
    for client in clients:
        profile = devices.profile(client)
        assert profile is not None
        assert scenario.fleet is not None
        # A device that failed before it sent its client key is in the ledger under its node's id.
        silent = Failure(client, "sense", "it never sent its client key", "dropped")
        end = None if client in finished else failures.get(client, silent)
        plan = plans.get(client)
        language = plan.language if plan else ""
        # A client that was not planned for has sent no language: it counts as one of the first.
        own = cost.of(language)
        mode = choose_mode(own.peaks, int(profile.memory_mb * MB), scenario.fleet.sensing)
        work = DeviceWorkload(
            own,
            profile,
            mode or "streamed",
            audio[client],
            sent.get(client, {}),
            observes,
            calibration,
            plan.bits if plan else (),
            language if language in own.trimmed else "",
            language if language in cost.by_language else "",
        )
        tries = {stage: _tries(scenario, client, stage, end) for stage in STAGES}
        yield ClientWork(
            client,
            profile,
            sense=work.sense(tries["sense"]),
            personalize=work.personalize(tries["personalize"]),
            evaluate=work.evaluate(tries["evaluate"]),
            planned=end is None or end.stage != "plan",
        )


def _tries(scenario: Scenario, client: str, stage: str, end: Failure | None) -> tuple[Attempt, ...]:
    """Return the attempts of a stage; if the client ended there, the last one says how.

    Most ends follow from faults that the scenario declares, but not those of a worker that died, or
    of a reply that was rejected.
    """
    declared = attempts(scenario, client, stage)
    if end is None or stage != ("sense" if end.stage in (*GROUPED, "aggregate") else end.stage):
        return declared
    if end.outcome == "dropped":
        return declared if declared[-1].outcome in _SILENT else (*declared[:-1], Attempt("lost"))
    return (*declared[:-1], Attempt("refused" if end.outcome == "quarantined" else "failed"))


def _audio(known: Mapping[tuple[str, str], Workload], clients: Sequence[str]) -> dict[str, Audio]:
    """Return how much audio each client processes; the median where its workload is not known."""
    medians = {
        stage: [
            median(getattr(w, name) for (_, s), w in known.items() if s == stage)
            for name in ("clips", "seconds", "tokens")
        ]
        if any(s == stage for _, s in known)
        else [0.0, 0.0, 0.0]
        for stage in ("sense", "evaluate")
    }
    audio = {}
    for client in clients:
        stages = []
        for stage in ("sense", "evaluate"):
            w = known.get((client, stage))
            stages.append(medians[stage] if w is None else [w.clips, w.seconds, w.tokens])
        (clips, seconds, tokens), (test_clips, test_seconds, _) = stages
        audio[client] = Audio(clips, seconds, tokens, test_clips, test_seconds)
    return audio
