"""Whether the noise of a release is as strong as claimed, measured on the code that adds it."""

from __future__ import annotations

import numpy as np

from fedsim.audit.record import Claim
from fedsim.base.seeds import client_rng
from fedsim.privacy.audit import any_noise, epsilon_lower_bound, gaussian_noise
from fedsim.privacy.bounds import Bounds
from fedsim.privacy.noise import MECHANISMS
from fedsim.privacy.releases import release, view
from fedsim.scenario.schema import Scenario
from fedsim.study.release_params import release_params

TRIALS = 2_000
"""Releases of each of two users."""
CONFIDENCE = 0.999
"""A true claim is refuted by chance in at most one of a thousand audits."""


def measure_claim(scenario: Scenario, bounds: Bounds, trials: int = TRIALS) -> Claim:
    """Return the claimed epsilon and a lower bound, from releases of two opposite users.

    With normal noise, the layers of one user are all at their lower bounds, those of the other at
    their upper ones. Losses of other noise add up layer by layer, and their sum is too rare to be
    observed: there only one layer differs, and its share of epsilon is measured.

    Args:
        scenario: with a release that adds noise.
        bounds: of each layer.
        trials: releases of each user.

    Raises:
        FedsimError: for layers that the model does not have.
    """
    privacy = scenario.privacy
    params = release_params(scenario, len(bounds.low), bounds)
    rng = client_rng(scenario.seed, "", "audit claim")
    one, other, claimed, delta = bounds.low, bounds.high, privacy.epsilon, privacy.delta
    evidence = gaussian_noise
    if not MECHANISMS[privacy.mechanism].is_normal:
        layers = params.released()
        other = one.copy()
        other[layers[0]] = bounds.high[layers[0]]
        claimed, delta, evidence = claimed / len(layers), 0.0, any_noise

    def mechanism(user: np.ndarray) -> np.ndarray:
        values = np.where(user > 0.5, other, one)
        payload = release(privacy.release, values, params, rng).payload
        released = np.zeros(params.values)
        released[params.released()] = view(privacy.release, payload, params)
        return released

    differs = (one != other).astype(float)
    found = epsilon_lower_bound(
        mechanism,
        np.zeros(params.values),
        differs,
        trials=trials,
        delta=delta,
        confidence=CONFIDENCE,
        evidence=evidence,
    )
    return Claim(claimed, found.epsilon, found.sentence(claimed))
