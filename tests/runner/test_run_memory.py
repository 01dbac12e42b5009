"""The memory of a run from the shapes of its model, beside what its parts take."""

from __future__ import annotations

import math

import pytest
import toys

from fedsim.quant.moments import Moments
from fedsim.runner.memory import (
    OWN,
    PARTS,
    PUBLIC,
    ROUNDING,
    STEPS,
    TABLE,
    TESTED,
    WEIGHTS,
    Part,
    ProcessMemory,
    RunMemory,
    memory_of,
    process_memory,
)
from fedsim.scenario import load_scenario
from fedsim.speech.tuning import tuning_pass
from fedsim.study.model import study_model

PAPER = "methods=[{allocation: myqasr, rounding: nearest, calibration: minmax}]"
DEFAULT = "methods=[{allocation: knapsack, rounding: compensated, moments: blend, losses: public}]"


@pytest.fixture
def chosen(study):
    return lambda *overrides: load_scenario(study.file, ["engine.device=cpu", *overrides])


def parts(scenario, model, *, gpu=False):
    worker, server = process_memory(scenario, study_model(scenario, model), gpu=gpu)
    held = [{part.name: one.peak(part.name) for part in one.parts} for one in (worker, server)]
    assert all(names.keys() <= set(PARTS) for names in held)
    return held


@pytest.mark.parametrize("name", ["ctc-group", "whisper"])
def test_parts_of_a_process(chosen, speech, name):
    """Moments that layers share are counted for each, so that the bound holds wherever they do not;
    a worker has those of one client cached while it records the next one's."""
    model = speech(name)
    scenario = chosen(DEFAULT)
    worker, server = parts(scenario, model)
    weights = sum(math.prod(layer.shape) for layer in model.layers)
    assert worker[WEIGHTS] == server[WEIGHTS]
    assert worker[WEIGHTS][0] > 4 * weights
    recorded = tuning_pass(model, toys.clips([0.4, 0.5]), "en").observe((), moments=True).moments
    size = Moments(recorded).nbytes
    assert size <= server[PUBLIC][0] < 1.6 * size
    assert worker[OWN][0] == 2 * server[PUBLIC][0]
    assert TABLE in server
    assert TABLE not in worker
    assert worker[ROUNDING][0] > server[PUBLIC][0] / 2
    assert worker[TESTED][0] > 8 * weights
    assert all(gpu == 0 for _, gpu in (*worker.values(), *server.values()))


def test_a_group_holds_the_moments_of_its_clients(chosen):
    """While they are recorded together, beside those of the group before; never of more clients
    than there are."""
    alone, four, all_five = (
        memory_of(chosen(DEFAULT, f"engine.clients_per_batch={n}")).worker.peak(OWN)[0]
        for n in (1, 4, 100)
    )
    assert (four, all_five) == (4 * alone, 5 * alone)


def test_what_is_on_a_gpu(chosen, speech):
    """Weights and what is made from them; moments are brought to the host."""
    model, scenario = speech("whisper"), chosen(DEFAULT)
    for host, there in zip(parts(scenario, model), parts(scenario, model, gpu=True), strict=True):
        assert host.keys() == there.keys()
        assert there[WEIGHTS] == (0, host[WEIGHTS][0])
        for name in there.keys() & {OWN, PUBLIC}:
            assert there[name][0] == host[name][0] >= there[name][1] > 0
        assert there.get(TESTED, (0, 1))[0] == 0


def test_the_paper_needs_neither_moments_nor_a_table(chosen, speech):
    worker, server = parts(chosen(PAPER), speech("ctc-group"))
    assert worker.keys() == {WEIGHTS, TESTED}
    assert server.keys() == {WEIGHTS, ROUNDING}
    worker, server = parts(chosen("methods=[fp32]"), speech("ctc-group"))
    assert worker.keys() == server.keys() == {WEIGHTS}


def run(*, workers=4, alone=False, per_gpu=2, share=0.25, card=None) -> RunMemory:
    worker = ProcessMemory(
        (Part("a", 10, 1), Part("b", 5, 7, ("test",)), Part("b", 6, 0, ("round",)))
    )
    server = ProcessMemory((Part("a", 20, 2), Part("c", 30, 40, ("record", "round"))))
    return RunMemory(worker, server, workers, "cuda", alone, per_gpu, share, card)


def test_sums():
    """Of steps that follow each other the largest counts; in one process one of both works."""
    one = run()
    assert one.worker.peak() == (16, 8)
    assert one.worker.peak("b") == (6, 7)
    assert one.server.peak() == (50, 42)
    assert one.host() == 4 * 16 + 50
    assert one.gpu() == 2 * 8 + 42
    assert run(workers=1).gpu() == 8 + 42
    assert run(alone=True).host() == 50 + 10
    assert run(alone=True).gpu() == 42 + 1
    assert STEPS[0] == "record"


def test_whether_a_card_has_room():
    assert run().fits() is None
    assert run(card=("some", 58)).fits()
    assert not run(card=("some", 57)).fits()
    assert not run(card=("some", 58), share=0.1).fits()  # 8 of them for each worker


def test_of_a_scenario(chosen):
    """A GPU need not be there."""
    found = memory_of(chosen(DEFAULT, "engine.kind=ray", "engine.workers=9"))
    assert (found.workers, found.device, found.in_one_process) == (5, "cpu", False)  # five clients
    assert found.gpu() == 0
    assert memory_of(chosen(DEFAULT, "engine.kind=inprocess")).in_one_process
