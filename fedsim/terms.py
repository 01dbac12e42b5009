"""The terms of a release, which server and clients both derive from a scenario."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedsim.privacy.bounds import Bounds
from fedsim.privacy.releases import Terms
from fedsim.scenario.schema import Scenario


def release_terms(
    scenario: Scenario,
    layers: int,
    bounds: Bounds | None,
    plan: Callable[[np.ndarray], Sequence[int]] | None = None,
) -> Terms:
    """Return the terms on which a device releases its summary of so many layers.

    Args:
        scenario: says what is released.
        layers: of the model.
        bounds: of each layer, where the release reads them.
        plan: Algorithm 1 on this device; only a device has it.
    """
    said = scenario.privacy
    return Terms(
        layers=layers,
        bounds=bounds,
        bits=said.bits,
        mechanism=said.mechanism,
        epsilon=said.epsilon,
        delta=said.delta,
        noise=said.noise,
        chosen=said.layers,
        depths=scenario.clients.bit_depths,
        plan=plan,
    )


def given_bounds(low: Sequence[float], high: Sequence[float]) -> Bounds | None:
    """Return the bounds that a message carries, None if it has none.

    Raises `FedsimError` for bounds that are no ranges.
    """
    return Bounds(np.asarray(low, float), np.asarray(high, float)) if low or high else None
