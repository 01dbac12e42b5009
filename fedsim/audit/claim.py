"""Whether the noise of a release is what it is said to be, measured on the code that adds it."""

from __future__ import annotations

import numpy as np

from fedsim.audit.record import Claim
from fedsim.base.seeds import client_rng
from fedsim.privacy.audit import any_noise, epsilon_at_least, gaussian_noise
from fedsim.privacy.bounds import Bounds
from fedsim.privacy.releases import release, view
from fedsim.scenario.schema import Scenario
from fedsim.study.release_params import release_params

TRIALS = 2_000
"""Releases of each of two users."""
CONFIDENCE = 0.999
"""An honest claim is refuted by chance once in a thousand audits at most."""


def measure_claim(scenario: Scenario, bounds: Bounds, trials: int = TRIALS) -> Claim:
    """Return what releases of two users, as different as can be, show of epsilon.

    Gaussian noise: all layers at one end of their bounds, or at the other. Laplace noise, whose
    loss adds up layer by layer to what is too rare to be seen: one layer differs, for its share of
    epsilon.

    Args:
        scenario: of a release that adds noise.
        bounds: of each layer.
        trials: releases of each.

    Raises `FedsimError` for layers that the model does not have.
    """
    privacy = scenario.privacy
    params = release_params(scenario, len(bounds.low), bounds)
    rng = client_rng(scenario.seed, "", "audit claim")
    one, other, claimed, delta = bounds.low, bounds.high, privacy.epsilon, privacy.delta
    evidence = gaussian_noise
    if privacy.mechanism != "gaussian":
        layers = params.released()
        other = one.copy()
        other[layers[0]] = bounds.high[layers[0]]
        claimed, delta, evidence = claimed / len(layers), 0.0, any_noise

    def mechanism(user: np.ndarray) -> np.ndarray:
        values = np.where(user > 0.5, other, one)
        payload = release(privacy.release, values, params, rng).payload
        whole = np.zeros(params.values)
        whole[params.released()] = view(privacy.release, payload, params)
        return whole

    differs = (one != other).astype(float)
    found = epsilon_at_least(
        mechanism,
        np.zeros(params.values),
        differs,
        trials=trials,
        delta=delta,
        confidence=CONFIDENCE,
        evidence=evidence,
    )
    return Claim(claimed, found.epsilon, found.sentence(claimed))
