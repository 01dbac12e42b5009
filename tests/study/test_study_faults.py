"""Declared faults: how often, for whom, and how a run goes on after each."""

from __future__ import annotations

from collections import Counter

import pytest
from scipy.stats import binomtest

from fedsim.protocol.messages import PROTOCOL
from fedsim.results.ledger import Ledger
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario
from fedsim.scenario.schema import FaultSettings
from fedsim.study.faults import Fault, drawn_fault


def drawn(faults, clients=2000, stage="sense", attempt=1, timeout_s=60.0, seed=1):
    settings = [FaultSettings.model_validate(f) for f in faults]
    return [drawn_fault(settings, seed, f"c{i}", stage, attempt, timeout_s) for i in range(clients)]


def test_shares_are_probabilities():
    found = Counter(f.kind if f else "" for f in drawn([{"kind": "crash", "share": 0.1}]))
    assert binomtest(found["crash"], 2000, 0.1).pvalue > 0.001
    assert found["crash"] + found[""] == 2000
    assert drawn([{"kind": "crash", "share": 1.0}], 5) == [Fault("crash")] * 5


def test_the_first_that_hits_and_only_its_stage():
    both = [{"kind": "corrupt", "share": 0.5, "stage": "sense"}, {"kind": "late", "share": 1.0}]
    kinds = Counter(f.kind for f in drawn(both))
    assert binomtest(kinds["corrupt"], 2000, 0.5).pvalue > 0.001
    assert set(kinds) == {"corrupt", "late"}
    assert {f.kind for f in drawn(both, 50, stage="evaluate")} == {"late"}


def test_what_is_a_clients_own_is_not_hidden_by_what_hits_now_and_then():
    often = {"kind": "delay", "share": 0.5, "seconds": [1, 2]}
    own = {"kind": "wrong_version", "share": 0.5, "per": "client"}
    found = [f and f.kind for f in drawn([often, own], 200)]
    assert [k == "wrong_version" for k in found] == [
        f is not None for f in drawn([{**often, "share": 1e-9}, own], 200)
    ]
    # The rest meets the other fault as if there were nothing else.
    alone = [f and f.kind for f in drawn([often, {**own, "share": 1e-9}], 200)]
    assert all(k in (a, "wrong_version") for k, a in zip(found, alone, strict=True))


def test_by_message_or_by_client():
    message = [{"kind": "drop_after", "share": 0.5}]
    client = [{"kind": "drop_after", "share": 0.5, "per": "client"}]
    assert drawn(message, attempt=1) != drawn(message, attempt=2)
    assert drawn(client, attempt=1) == drawn(client, attempt=2) == drawn(client, stage="evaluate")
    assert drawn(client) != drawn(client, seed=2)


def test_a_delay_beyond_the_timeout_is_late():
    found = drawn([{"kind": "delay", "share": 1.0, "seconds": [0, 120]}])
    kinds = Counter(f.kind for f in found)
    assert binomtest(kinds["late"], 2000, 0.5).pvalue > 0.001
    assert all((f.kind == "late") == (f.seconds > 60) for f in found)
    assert max(f.seconds for f in found) <= 120


ALWAYS = {
    "drop_before": ("dropped", "the request was lost", ["declared drop_before", "no answer"]),
    "drop_after": ("dropped", "the answer was lost", ["declared drop_after", "no answer"]),
    "crash": ("dropped", "the client crashed", ["declared crash", "no answer"]),
    "out_of_memory": ("dropped", "ran out of memory", ["declared out_of_memory", "no answer"]),
    "late": ("dropped", "no answer in time", ["declared late", "no answer", "second reply"]),
    "corrupt": ("quarantined", "is not a valid Summary", ["declared corrupt", "refused"]),
    "wrong_version": (
        "quarantined",
        f"version {PROTOCOL + 1} of the protocol",
        ["declared wrong_version"],
    ),
}


@pytest.fixture
def run(study, tmp_path):
    def run_(*overrides):
        fixed = ["engine.kind=inprocess", "save_models=false", "corpus.test_clips=2"]
        fixed += ["methods=[fp32, {allocation: myqasr, calibration: minmax}]"]
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        result = run_scenario(load_scenario(study.file, [*fixed, *overrides]), place)
        with Ledger(result.folder.ledger) as ledger:
            return result, ledger.events(), ledger.finished()

    return run_


@pytest.mark.parametrize("kind", ALWAYS)
def test_a_client_that_always_fails_is_given_up(run, kind):
    result, events, finished = run(f"faults=[{{kind: {kind}, share: 1, stage: sense}}]")
    outcome, reason, lines = ALWAYS[kind]
    assert (result.rows, finished) == ([], set())
    assert {f.outcome for f in result.failures} == {outcome}
    assert all(reason in f.reason for f in result.failures)
    for client in {f.client for f in result.failures}:
        counts = Counter(e.event for e in events if e.client == client)
        assert set(counts) == {*lines, outcome}
        tries = {"dropped": 3, "quarantined": 1 if kind == "wrong_version" else 2}[outcome]
        assert counts[lines[0]] == tries


@pytest.mark.parametrize("kind", ["duplicate", "delay, seconds: [1, 2]"])
def test_faults_that_cost_no_result(run, kind):
    result, events, _ = run(f"faults=[{{kind: {kind}, share: 1}}]")
    assert result.rows == run()[0].rows
    assert result.failures == []
    declared = Counter(e.event for e in events)
    assert declared[f"declared {kind.split(',')[0]}"] == 3 * len({e.client for e in events})
    assert declared["second reply"] == (declared["declared duplicate"])


def test_retries_bring_the_same_results(run):
    """Faults that hit some attempts: whoever gets through has the results of a run without."""
    kinds = ["drop_before", "drop_after", "crash", "late", "corrupt", "duplicate"]
    declared = ", ".join(f"{{kind: {kind}, share: 0.08}}" for kind in kinds)
    result, events, finished = run(f"faults=[{declared}]", "retries.attempts=5", "seed=5")
    sound = run("seed=5")[0]
    assert result.rows == [r for r in sound.rows if r.client in finished]
    clients = {r.client for r in sound.rows}
    outcomes = Counter(f.outcome for f in result.failures)
    assert outcomes["dropped"] + outcomes["quarantined"] + len(finished) == len(clients)
    assert any(e.event in ("no answer", "refused") for e in events)
    assert finished
