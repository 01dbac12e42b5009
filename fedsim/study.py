"""What server and clients both derive from a scenario: the model, and what its model files say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedsim.privacy.bounds import Bounds
from fedsim.privacy.releases import Terms
from fedsim.quant import modelfile
from fedsim.quant.modelfile import Manifest
from fedsim.scenario.schema import Scenario
from fedsim.speech.models import load_model
from fedsim.speech.models.base import SpeechModel


def load_study_model(scenario: Scenario) -> SpeechModel:
    """Load the scenario's full-precision model with the scenario's settings."""
    settings = scenario.model
    return load_model(
        settings.id,
        window_s=settings.window_s,
        keep=settings.keep,
        batch_size=settings.batch_size,
    )


def model_manifest(scenario: Scenario, model: SpeechModel, bits: tuple[int, ...]) -> Manifest:
    """Return the manifest of a model file of this scenario with these bit depths."""
    settings = {"window_s": scenario.model.window_s, "keep": list(scenario.model.keep)}
    return Manifest(
        model.id,
        modelfile.fingerprint(model.layers),
        scenario.quantization.weights,
        scenario.quantization.activation_bits,
        bits,
        settings,
    )


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
