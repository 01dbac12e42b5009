"""The round of a run on the virtual clock: from what the ledger holds to a line a client.

A device gets one model, whatever number of methods the scenario compares: `clock.model` says which.
Its messages count as they were. Where nothing came back from a client, it is taken to have as much
audio as the median client.
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
from fedsim.run.device_workload import GROUPED, Audio, DeviceWorkload, blob_bytes
from fedsim.scenario.cells import all_cells, needs_profiles, timed_model
from fedsim.scenario.schema import Scenario
from fedsim.study.cost import ModelCost, read_cost
from fedsim.study.devices import Devices
from fedsim.study.faults import attempts

_SILENT = ("lost", "unreached", "crashed")
"""Ends of an attempt after which the server heard nothing."""


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
        blob_bytes(cost),
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
        # One that failed before it said who it is stands in the ledger as a node.
        silent = Failure(client, "sense", "it never said who it is", "dropped")
        end = None if client in finished else failures.get(client, silent)
        mode = choose_mode(cost.peaks, int(profile.memory_mb * MB), scenario.fleet.sensing)
        work = DeviceWorkload(
            cost,
            profile,
            mode or "streamed",
            audio[client],
            sent.get(client, {}),
            observes,
            calibration,
            plans.get(client, ()),
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
    """Return the attempts of a stage; where the client ended there, the last tells how.

    Declared faults explain most ends; a worker that died and a reply that did not fit, none.
    """
    found = attempts(scenario, client, stage)
    if end is None or stage != ("sense" if end.stage in (*GROUPED, "aggregate") else end.stage):
        return found
    if end.outcome == "dropped":
        return found if found[-1].outcome in _SILENT else (*found[:-1], Attempt("lost"))
    return (*found[:-1], Attempt("refused" if end.outcome == "quarantined" else "failed"))


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
