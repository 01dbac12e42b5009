"""What the scenario's model costs the devices of a fleet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fedsim.quant.formats import OWN
from fedsim.quant.memory import proxy_bytes
from fedsim.quant.proxy import BITS, FORMAT
from fedsim.scenario.cells import all_cells, timed_model
from fedsim.scenario.schema import Scenario
from fedsim.speech.audio import SAMPLE_RATE
from fedsim.speech.macs import count_macs
from fedsim.speech.public_model import PublicModel
from fedsim.study.cost import ModelCost, TrimmedCost
from fedsim.study.model import StudyModel, sensing_peaks
from fedsim.study.vocabulary import TrimmedModels


def model_cost(
    scenario: Scenario, trimmed: TrimmedModels, public: PublicModel, languages: Iterable[str] = ()
) -> ModelCost:
    """Return the cost of the model in bytes and MACs; the scenario has a fleet.

    Args:
        scenario: of the study.
        trimmed: its model.
        public: what is known of the model before any user's audio.
        languages: of clients whose model files hold a part of the vocabulary.
    """
    study = trimmed.study
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
        and scenario.clients.format == OWN
        and study.weight_format == FORMAT
        and scenario.model.vocabulary is None
        and all(cell.rounding == "nearest" for cell in all_cells(scenario)),
        peaks=sensing_peaks(scenario, study),
        clip_macs=macs.clip,
        second_macs=macs.second,
        token_macs=macs.token,
        batch=scenario.model.batch_size,
        trimmed={language: _trimmed_cost(trimmed.of(language)) for language in languages},
        **_device_rounding(scenario, public),
    )


def _trimmed_cost(study: StudyModel) -> TrimmedCost:
    """Return what model files cost that hold the tokens of one language."""
    rows, sizes = study.rows, study.sizes
    assert rows is not None
    layer = next(i for i, layer in enumerate(study.layers) if layer.name == rows.layer)
    by_depth = zip(sizes.depths, sizes.layer_bytes[layer].tolist(), strict=True)
    return TrimmedCost(layer, rows.count / rows.kept.size, dict(by_depth), sizes.fixed_bytes)


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
