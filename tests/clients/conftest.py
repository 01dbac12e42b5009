"""A runtime of the toy study, one of its devices, and the models that are planned for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fedsim_clients.device import Device
from fedsim_clients.runtime import Runtime, open_runtime
from fedsim_server.planner import Planner

from fedsim.protocol import messages as m
from fedsim.protocol.run_config import RunConfig
from fedsim.quant.bank import LayerBank
from fedsim.scenario import load_scenario
from fedsim.study.public_model import public_model


@contextmanager
def opened(scenario, run_dir) -> Iterator[Runtime]:
    """A runtime of its own, with an empty bank and run folder."""
    open_runtime.cache_clear()
    yield open_runtime(RunConfig(scenario.model_dump_json(), run_dir))
    open_runtime.cache_clear()


def planner_of(runtime: Runtime) -> Planner:
    public = public_model(runtime.scenario, runtime.model)
    weights = runtime.study.switch.full_weights()
    layers, store = runtime.model.layers, runtime.weights.store
    bank = LayerBank(weights, layers, runtime.study.weight_format, store)
    return Planner(runtime.scenario, runtime.study.sizes, bank, public, 1)


@pytest.fixture
def open_study(study, tmp_path):
    """f(overrides) -> a context with the runtime of the study with these settings."""
    return lambda *overrides: opened(load_scenario(study.file, overrides), tmp_path / "run")


@pytest.fixture
def runtime(open_study) -> Iterator[Runtime]:
    with open_study("save_models=false") as made:
        yield made


@pytest.fixture
def device(runtime) -> Device:
    return Device(runtime, runtime.clients["ann"])


@pytest.fixture
def planner(runtime) -> Planner:
    return planner_of(runtime)


@pytest.fixture
def plan_for():
    """Runtime -> its planner."""
    return planner_of


@pytest.fixture
def candidates(device, planner) -> tuple[m.Candidate, ...]:
    return planner.own(device.sense(m.SenseRequest("median")))


@pytest.fixture
def passes():
    """Model -> a context with the list of the forward passes through it."""

    @contextmanager
    def counting(model) -> Iterator[list[int]]:
        found: list[int] = []
        handle = model.module.register_forward_hook(lambda *_: found.append(1))
        try:
            yield found
        finally:
            handle.remove()

    return counting
