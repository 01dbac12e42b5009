"""What server and clients both derive from a scenario: the model, and what its model files say."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedsim.fleet.cost import ModelCost
from fedsim.quant import modelfile
from fedsim.quant.allocation import Sizes
from fedsim.quant.memory import peak_bytes, proxy_bytes
from fedsim.quant.modelfile import Manifest
from fedsim.quant.proxy import BITS, GRANULARITY
from fedsim.scenario.schema import Scenario
from fedsim.speech.activations import activation_bytes
from fedsim.speech.macs import count_macs
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


def sensing_peaks(
    scenario: Scenario, model: SpeechModel, leftovers: Mapping[str, torch.Tensor]
) -> dict[str, int]:
    """Return sensing mode -> the most bytes that a device of the scenario's fleet needs at once.

    Weights (`fedsim.quant.memory`), and the widest layer's activations for `fleet.clip_s` seconds.
    """
    assert scenario.fleet is not None
    activations = activation_bytes(model, scenario.fleet.clip_s)
    return {m: n + activations for m, n in peak_bytes(model.layers, leftovers).items()}


def model_cost(
    scenario: Scenario,
    model: SpeechModel,
    sizes: Sizes,
    stored: Mapping[str, torch.Tensor],
    full_bytes: int,
) -> ModelCost:
    """Return what the model costs devices; `stored` are its leftovers as model files have them."""
    macs = count_macs(model)
    by_depth = zip(sizes.depths, sizes.layer_bytes.T.tolist(), strict=True)
    return ModelCost(
        layers=tuple(model.layers),
        layer_bytes={bits: tuple(values) for bits, values in by_depth},
        rest_bytes=sizes.fixed_bytes,
        full_bytes=full_bytes,
        proxy_bytes=proxy_bytes(model.layers) + sum(t.nbytes for t in stored.values()),
        proxy_is_model=BITS in sizes.depths and scenario.quantization.weights == GRANULARITY,
        peaks=sensing_peaks(scenario, model, modelfile.load_leftovers(stored)),
        clip_macs=macs.clip,
        second_macs=macs.second,
        token_macs=macs.token,
        batch=scenario.model.batch_size,
    )
