"""What a device lets out of its summary: the release that its own scenario chose."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clients.workbench import Workbench
from fedsim import messages as m
from fedsim.base.seeds import client_rng
from fedsim.errors import DeclinedError
from fedsim.privacy.budget import UNLIMITED, Limit, answer_once, is_answered, spend, spent
from fedsim.privacy.noise import MECHANISMS
from fedsim.privacy.releases import release
from fedsim.quant.allocation import allocate
from fedsim.scenario.privacy import released_allocation
from fedsim.terms import given_bounds, release_terms

SPENT = "privacy.sqlite"
"""What each device has spent, and what it answered for it; in `HOME`, else in the run folder."""
HOME = "FEDSIM_PRIVACY_DIR"
"""Environment variable: a folder of the device's own, whose budget holds across runs."""


def released(
    bench: Workbench, client: str, request: m.SenseRequest, sense: Callable[[], np.ndarray]
) -> bytes:
    """Return all that leaves the device of its sensitivities.

    Args:
        bench: the scenario, and the run folder, which holds the device's privacy budget unless
            `FEDSIM_PRIVACY_DIR` names another.
        client: key of the client.
        request: says the round, and the public bounds.
        sense: observes the clips and returns the sensitivities (L,); not called where the request
            was answered before.

    Raises:
        DeclinedError: if the release would cost more than is left of the budget.
        FedsimError: for terms or bounds that the release cannot have.
    """
    said = bench.scenario.privacy
    allocation, order = released_allocation(bench.scenario)

    def plan(values: np.ndarray) -> tuple[int, ...]:
        limits = bench.devices[client]
        sizes = bench.sizes.restricted(limits.bit_depths)
        return allocate(allocation, values, sizes, limits.budget_bytes, order=order)

    bounds = given_bounds(request.low, request.high)
    terms = release_terms(bench.scenario, len(bench.model.layers), bounds, plan)
    rng = client_rng(bench.scenario.seed, client, f"release {said.release} round {request.round}")

    def make(values: np.ndarray) -> bytes:
        return release(said.release, values, terms, rng).payload

    if said.release != "noisy":
        return make(sense())
    file, name = _account(bench, request)
    if not is_answered(file, client, name):
        _spend(bench, client, file, name)
        values = sense()
        return answer_once(file, client, name, lambda: make(values))
    return answer_once(file, client, name, bytes)


def _account(bench: Workbench, request: m.SenseRequest) -> tuple[Path, str]:
    """Return the file of the device's budget, and what the request is called in it.

    The name has all that the answer depends on but the clips: at other terms it is another request.
    """
    said = bench.scenario.privacy
    terms = repr((said.mechanism, said.epsilon, said.delta, said.noise, said.layers)).encode()
    bounds = np.array([request.low, request.high], "<f8").tobytes()
    parts = (said.release.encode(), terms, request.measure.encode(), bounds)
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    name = f"release {said.release} round {request.round} terms {digest[:32]}"
    home = os.environ.get(HOME)
    if not home:
        return bench.run_dir / SPENT, name
    return Path(home).expanduser() / SPENT, f"run {bench.run_dir.name}: {name}"


def _spend(bench: Workbench, client: str, file: Path, name: str) -> None:
    """Count what the release costs, before any noise is drawn."""
    said = bench.scenario.privacy
    delta = said.delta if MECHANISMS[said.mechanism]().needs_delta else 0.0
    limit = UNLIMITED if said.budget is None else Limit(said.budget.epsilon, said.budget.delta)
    if not spend(file, client, name, said.epsilon, delta, limit):
        raise DeclinedError(
            f"client {client!r} declines: it has spent ε = {spent(file, client)[0]:.4g} of"
            f" {limit.epsilon:.4g}, and this release would cost {said.epsilon:.4g} more; raise"
            f" privacy.budget, or ask for fewer rounds"
        )
