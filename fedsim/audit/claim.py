"""Whether the noise of a release is what it is said to be, measured on the code that adds it."""

from __future__ import annotations

import numpy as np

from fedsim.audit.record import Claim
from fedsim.base.seeds import client_rng
from fedsim.privacy.audit import any_noise, epsilon_at_least, gaussian_noise
from fedsim.privacy.bounds import Bounds
from fedsim.privacy.releases import release
from fedsim.scenario.schema import Scenario
from server.told import told_by

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
        scenario: of release `noisy`.
        bounds: of each layer.
        trials: releases of each.

    Raises `FedsimError` for layers that the model does not have.
    """
    said = scenario.privacy
    terms = told_by(scenario, len(bounds.low), bounds).terms
    rng = client_rng(scenario.seed, "", "audit claim")
    one, other, claimed, delta = bounds.low, bounds.high, said.epsilon, said.delta
    evidence = gaussian_noise
    if said.mechanism != "gaussian":
        layers = range(terms.layers) if terms.chosen is None else terms.chosen
        other = one.copy()
        other[layers[0]] = bounds.high[layers[0]]
        claimed, delta, evidence = claimed / len(layers), 0.0, any_noise

    def mechanism(user: np.ndarray) -> np.ndarray:
        values = np.where(user > 0.5, other, one)
        told = np.frombuffer(release("noisy", values, terms, rng).payload, "<f4").astype(float)
        whole = np.zeros(terms.layers)
        whole[list(range(terms.layers) if terms.chosen is None else terms.chosen)] = told
        return whole

    differs = (one != other).astype(float)
    found = epsilon_at_least(
        mechanism,
        np.zeros(terms.layers),
        differs,
        trials=trials,
        delta=delta,
        confidence=CONFIDENCE,
        evidence=evidence,
    )
    return Claim(claimed, found.epsilon, found.sentence(claimed))
