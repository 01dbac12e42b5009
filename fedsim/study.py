"""What server and clients both derive from a scenario: the model, and what its model files say."""

from __future__ import annotations

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
