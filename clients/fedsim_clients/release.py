"""Makes the release of a device's sensitivities that its own scenario chose, within its budget."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedsim.base.seeds import client_rng
from fedsim.errors import DeclinedError
from fedsim.privacy.budget import (
    HOME,
    SPENT,
    UNLIMITED,
    Limit,
    answer_once,
    is_answered,
    spend,
    spent,
)
from fedsim.privacy.releases import release
from fedsim.protocol import messages as m
from fedsim.quant.allocation import Sizes
from fedsim.study.release_params import device_planner, given_bounds, release_params
from fedsim_clients.runtime import Runtime


def released(
    runtime: Runtime,
    client: str,
    request: m.SenseRequest,
    sense: Callable[[], np.ndarray],
    sizes: Sizes,
) -> bytes:
    """Return everything that leaves the device of its sensitivities.

    Args:
        runtime: the scenario, and the run folder, which holds the device's privacy budget unless
            `FEDSIM_PRIVACY_DIR` names another.
        client: key of the client.
        request: holds the round and the public bounds.
        sense: observes the clips and returns the values of the layer profile, flat; not called
            where the request was answered before.
        sizes: of the client's model files, for a device that plans for itself.

    Raises:
        DeclinedError: if the release would cost more than is left of the budget.
        FedsimError: for invalid parameters or bounds of the release.
    """
    scenario, layers = runtime.scenario, len(runtime.model.layers)
    kind = scenario.privacy.release
    bounds = given_bounds(request.low, request.high)
    plan = device_planner(scenario, sizes, runtime.devices[client])
    params = release_params(scenario, layers, bounds, plan)
    rng = client_rng(scenario.seed, client, f"release {kind} round {request.round}")

    def make(values: np.ndarray) -> bytes:
        return release(kind, values, params, rng).payload

    if not scenario.privacy.chosen.adds_noise:
        return make(sense())
    file, name = _account(runtime, request)
    if not is_answered(file, client, name):
        _spend(runtime, client, file, name)
        values = sense()
        return answer_once(file, client, name, lambda: make(values))
    return answer_once(file, client, name, bytes)


def _account(runtime: Runtime, request: m.SenseRequest) -> tuple[Path, str]:
    """Return the file of the device's budget, and the name of the request in it.

    The name covers everything that the answer depends on except the clips: with other parameters
    it is another request.
    """
    privacy = runtime.scenario.privacy
    params = repr(
        (privacy.mechanism, privacy.epsilon, privacy.delta, privacy.noise, privacy.layers)
    ).encode()
    bounds = np.array([request.low, request.high], "<f8").tobytes()
    parts = (privacy.release.encode(), params, request.measure.encode(), bounds)
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    name = f"release {privacy.release} round {request.round} terms {digest[:32]}"
    home = os.environ.get(HOME)
    if not home:
        return runtime.run_dir / SPENT, name
    return Path(home).expanduser() / SPENT, f"run {runtime.run_dir.name}: {name}"


def _spend(runtime: Runtime, client: str, file: Path, name: str) -> None:
    """Count the cost of the release before any noise is drawn; `DeclinedError` past the budget."""
    privacy = runtime.scenario.privacy
    delta = privacy.delta if privacy.spends_delta else 0.0
    budget = privacy.budget
    limit = UNLIMITED if budget is None else Limit(budget.epsilon, budget.delta)
    if not spend(file, client, name, privacy.epsilon, delta, limit):
        raise DeclinedError(
            f"client {client!r} declines: it has spent ε = {spent(file, client)[0]:.4g} of"
            f" {limit.epsilon:.4g}, and this release would cost {privacy.epsilon:.4g} more; raise"
            f" privacy.budget or lower privacy.rounds"
        )
