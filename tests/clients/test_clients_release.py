"""The budget of a device: what a request costs, when it is the same one, and where it is kept."""

from types import SimpleNamespace

import numpy as np
import paper
import pytest
from fedsim_clients.release import HOME, SPENT, released

from fedsim.errors import DeclinedError
from fedsim.privacy.budget import spent
from fedsim.protocol import messages as m
from fedsim.quant.allocation import Sizes
from fedsim.scenario import Scenario
from fedsim.study.devices import Limits

LAYERS = 6
LOW, HIGH = (1.0,) * LAYERS, (2.0,) * LAYERS
DEPTHS = (2, 4, 8)
SIZES = Sizes(DEPTHS, np.ones((LAYERS, len(DEPTHS)), int), 0)
VALUES = np.linspace(1.1, 1.9, LAYERS)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    monkeypatch.delenv(HOME, raising=False)


def runtime(run_dir, **privacy):
    run_dir.mkdir(exist_ok=True)
    settings = {"release": "noisy", "epsilon": 1.0, "delta": 1e-5, "noise": "seeded", **privacy}
    corpus = {"kind": "voices", "group_by": "speaker", "population": {"speakers": 4}}
    scenario = Scenario.model_validate(
        {
            "name": "x",
            "model": {"id": "m"},
            "corpus": corpus,
            "clients": {"budget_mb": 1},
            "quantization": paper.QUANTIZATION,
            "methods": ["myqasr"],
            "privacy": settings,
        }
    )
    return SimpleNamespace(
        scenario=scenario,
        model=SimpleNamespace(layers=[None] * LAYERS),
        study=SimpleNamespace(sizes=SIZES),
        devices={"ann": Limits(10**6, DEPTHS)},
        run_dir=run_dir,
    )


def ask(runtime, number=1, low=LOW, measure="median"):
    request = m.SenseRequest(measure, round=number, low=low, high=HIGH)
    return released(runtime, "ann", request, lambda: VALUES, runtime.study.sizes)


def test_the_same_request_has_the_same_answer_and_costs_once(tmp_path):
    one = runtime(tmp_path / "run", noise="seeded")
    assert ask(one) == ask(one)
    assert spent(one.run_dir / SPENT, "ann") == (1.0, pytest.approx(1e-5))


OTHERS = [
    # (other settings, other fields of the request)
    ({"epsilon": 500.0}, {}),
    ({"delta": 1e-6}, {}),
    ({"mechanism": "laplace"}, {}),
    ({"layers": [0, 1]}, {}),
    ({}, {"low": (0.5,) * LAYERS}),
    ({}, {"measure": "std"}),
    ({"rounds": 2}, {"number": 2}),
]


def test_with_other_parameters_a_request_is_another(tmp_path):
    for number, (settings, fields) in enumerate(OTHERS):
        place = tmp_path / str(number)
        first = ask(runtime(place))
        answer = ask(runtime(place, **settings), **fields)
        assert (answer == first) == (fields == {"measure": "std"})  # the toy ignores the measure
        epsilon, _ = spent(place / SPENT, "ann")
        assert epsilon == 1.0 + settings.get("epsilon", 1.0)


def test_a_folder_of_the_device_holds_its_budget_across_runs(tmp_path, monkeypatch):
    limit = {"budget": {"epsilon": 2.0, "delta": 0.5}}
    for number in range(3):  # the budget of one run
        ask(runtime(tmp_path / f"apart{number}", **limit))
    home = tmp_path / "device"
    home.mkdir()
    monkeypatch.setenv(HOME, str(home))
    first, second, third = (runtime(tmp_path / f"run{i}", **limit) for i in range(3))
    kept = ask(first)
    ask(second)
    with pytest.raises(DeclinedError, match=r"'ann' declines: .* 2 of 2, .*; raise privacy.budget"):
        ask(third)
    assert ask(first) == kept
    assert spent(home / SPENT, "ann")[0] == 2.0
    assert not (tmp_path / "run0" / SPENT).exists()
