"""The scenario's full-precision model, and its cost on the devices of a fleet."""

from __future__ import annotations

from typing import Any, TypeAlias

from fedsim.quant.memory import peak_bytes, proxy_bytes
from fedsim.quant.packable import PackableModel, packable
from fedsim.quant.proxy import BITS, FORMAT
from fedsim.scenario.cells import all_cells, timed_model
from fedsim.scenario.schema import Scenario
from fedsim.speech.activations import activation_bytes
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.macs import count_macs
from fedsim.speech.models import load_model
from fedsim.speech.models.base import SpeechModel
from fedsim.speech.public_model import PublicModel
from fedsim.study.cost import ModelCost

StudyModel: TypeAlias = PackableModel[SpeechModel]
"""The model of a study, loaded, with exact sizes and the manifest of its model files."""


def load_study_model(scenario: Scenario) -> StudyModel:
    """Load the scenario's full-precision model, ready for packing with the scenario's settings.

    Raises `FedsimError` as `fedsim.speech.models.load_model` does.
    """
    settings = scenario.model
    model = load_model(
        settings.id,
        window_s=settings.window_s,
        keep=settings.keep,
        batch_size=settings.batch_size,
        target_lang=settings.target_lang,
        normalize=settings.normalize,
        device=scenario.engine.device,
        dtype=settings.dtype,
    )
    return study_model(scenario, model)


def study_model(scenario: Scenario, model: SpeechModel) -> StudyModel:
    """Return a loaded model, ready for packing with the scenario's settings."""
    return packable(
        model,
        model.id,
        weight_format=scenario.quantization.weight_format,
        depths=scenario.clients.bit_depths,
        settings=model.settings,
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


def model_cost(scenario: Scenario, study: StudyModel, public: PublicModel) -> ModelCost:
    """Return the cost of the model in bytes and MACs; the scenario has a fleet."""
    layers, sizes = study.model.layers, study.sizes
    macs = count_macs(study.model)
    by_depth = zip(sizes.depths, sizes.layer_bytes.T.tolist(), strict=True)
    return ModelCost(
        layers=tuple(layers),
        layer_bytes={bits: tuple(values) for bits, values in by_depth},
        rest_bytes=sizes.fixed_bytes,
        full_bytes=study.switch.full_bytes(),
        proxy_bytes=proxy_bytes(layers) + sum(t.nbytes for t in study.stored.values()),
        proxy_is_model=BITS in sizes.depths
        and study.weight_format == FORMAT
        and all(cell.rounding == "nearest" for cell in all_cells(scenario)),
        peaks=sensing_peaks(scenario, study),
        clip_macs=macs.clip,
        second_macs=macs.second,
        token_macs=macs.token,
        batch=scenario.model.batch_size,
        **_device_rounding(scenario, public),
    )


def _device_rounding(scenario: Scenario, public: PublicModel) -> dict[str, Any]:
    """Return the fields of `ModelCost` on the model that the clock times, if its device rounds."""
    label = timed_model(scenario)
    moments = next(cell.moments for cell in all_cells(scenario) if cell.label == label)
    if moments not in ("own", "blend"):
        return {}
    if moments == "own":
        return {"moments": moments}
    clips = public.clips.clips
    return {
        "moments": moments,
        "public_bytes": len(public.clips.to_bytes()),
        "public_clips": len(clips),
        "public_seconds": sum(len(one.clip) for one in clips) / SAMPLE_RATE,
    }
