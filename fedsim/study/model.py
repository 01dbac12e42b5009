"""The scenario's full-precision model."""

from __future__ import annotations

from typing import TypeAlias

import torch

from fedsim.quant.memory import peak_bytes
from fedsim.quant.packable import PackableModel, packable
from fedsim.scenario.schema import Scenario
from fedsim.speech.activations import activation_bytes
from fedsim.speech.models import load_model
from fedsim.speech.models.base import SpeechModel

StudyModel: TypeAlias = PackableModel[SpeechModel]
"""The model of a study, loaded, with exact sizes and the manifest of its model files."""


def load_study_model(
    scenario: Scenario, *, language: str | None = None, beside: StudyModel | None = None
) -> StudyModel:
    """Load the scenario's full-precision model, ready for packing with the scenario's settings.

    Args:
        scenario: of the study.
        language: whose adapters, head and vocabulary it has, where model.target_lang names none.
        beside: the same model with another language's: equal weights are in memory once.

    Raises `FedsimError` as `fedsim.speech.models.load_model` does.
    """
    settings = scenario.model
    model = load_model(
        settings.id,
        window_s=settings.window_s,
        keep=settings.keep,
        batch_size=settings.batch_size,
        target_lang=settings.target_lang or language,
        normalize=settings.normalize,
        device=scenario.engine.device,
        dtype=settings.dtype,
    )
    if beside is not None:
        _share(model, beside)
    return study_model(scenario, model)


def _share(model: SpeechModel, other: StudyModel) -> None:
    """Let the weights of `model` that equal those of another model be these, in place."""
    weights = {f"{name}.weight": w for name, w in other.switch.full_weights().items()}
    known = weights | other.switch.full_leftovers()
    for name, holder in model.module.state_dict(keep_vars=True).items():
        same = known.get(name)
        if same is not None and torch.equal(same, holder):
            holder.data = same


def study_model(scenario: Scenario, model: SpeechModel) -> StudyModel:
    """Return a loaded model, ready for packing with the scenario's settings.

    Raises `FedsimError` for a model that the format of the scenario's files cannot hold.
    """
    return packable(
        model,
        model.id,
        weight_format=scenario.quantization.weight_format,
        depths=scenario.clients.bit_depths,
        settings=model.settings,
        format=scenario.clients.format,
    )


def sensing_peaks(scenario: Scenario, study: StudyModel) -> dict[str, int]:
    """Return sensing mode -> peak bytes of memory on a device; the scenario has a fleet.

    The sum of weights (`fedsim.quant.memory`) and the widest layer's activations for a clip of
    `fleet.clip_s` seconds.
    """
    assert scenario.fleet is not None
    activations = activation_bytes(study.model, scenario.fleet.clip_s)
    full = study.switch.full_weights()
    size = next(iter(full.values())).element_size()
    peaks = peak_bytes(study.model.layers, study.switch.full_leftovers(), size)
    return {mode: weights + activations for mode, weights in peaks.items()}
