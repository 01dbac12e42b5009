"""The parameters of a scenario's release, derived alike by server and clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedsim.errors import FedsimError
from fedsim.privacy.bounds import Bounds
from fedsim.privacy.release_params import ReleaseParams
from fedsim.quant.allocation import Sizes, allocate
from fedsim.quant.profile import profile_of
from fedsim.scenario.cells import LOSSES, measure_of
from fedsim.scenario.privacy import released_allocation
from fedsim.scenario.schema import Scenario
from fedsim.study.devices import Limits


def release_params(
    scenario: Scenario,
    layers: int,
    bounds: Bounds | None,
    plan: Callable[[np.ndarray], Sequence[int]] | None = None,
) -> ReleaseParams:
    """Return the parameters with which a device releases its layer profile.

    Args:
        scenario: names the release.
        layers: number of layers of the model.
        bounds: of each value, where the release reads them.
        plan: f(values) -> bit depths by the allocator on this device; None on the server.

    Raises:
        FedsimError: for layers to be released that the model does not have.
    """
    privacy = scenario.privacy
    last = max(privacy.layers or (), default=0)
    if privacy.chosen.adds_noise and last >= layers:
        raise FedsimError(
            f"privacy.layers: there is no layer {last}; name layers from 0 to {layers - 1}"
        )
    return ReleaseParams(
        layers=layers,
        per_layer=len(scenario.clients.bit_depths) if measure_of(scenario) == LOSSES else 1,
        bounds=bounds,
        bits=privacy.bits,
        mechanism=privacy.mechanism,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        noise=privacy.noise,
        chosen=privacy.layers,
        depths=scenario.clients.bit_depths,
        plan=plan,
    )


def device_planner(
    scenario: Scenario, sizes: Sizes, limits: Limits
) -> Callable[[np.ndarray], tuple[int, ...]]:
    """Return f(values of a layer profile) -> bit depths, as a device plans for itself.

    Args:
        scenario: names the allocator.
        sizes: of model files, at every bit depth that the scenario allows.
        limits: of the device.
    """
    allocation, order = released_allocation(scenario.methods)
    legal = sizes.restricted(limits.bit_depths)
    measure = measure_of(scenario)
    depths = scenario.clients.bit_depths if measure == LOSSES else ()

    def plan(values: np.ndarray) -> tuple[int, ...]:
        profile = profile_of(values, measure, depths)
        return allocate(allocation, profile, legal, limits.budget_bytes, order=order)

    return plan


def given_bounds(low: Sequence[float], high: Sequence[float]) -> Bounds | None:
    """Return the bounds in a message, None if it has none.

    Raises `FedsimError` for bounds that are not ranges.
    """
    return Bounds(np.asarray(low, float), np.asarray(high, float)) if low or high else None
