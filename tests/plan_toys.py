"""Scenarios of which only the methods matter, and cells of them."""

from __future__ import annotations

from types import SimpleNamespace

import paper

from fedsim.scenario.cells import Cell
from fedsim.scenario.schema import Scenario
from fedsim.speech.public_model import PublicModel

DEPTHS = (2, 4, 8)


def scenario(*methods, seed=5, **quantization) -> Scenario:
    return Scenario.model_validate(
        {
            "name": "toy",
            "seed": seed,
            "model": {"id": "none"},
            "corpus": {"path": "none", "group_by": "speaker"},
            "clients": {"budget_mb": 1.0, "bit_depths": list(DEPTHS)},
            "quantization": {**paper.QUANTIZATION, **quantization},
            "methods": list(methods),
        }
    )


def myqasr(*sources, **options):
    tuned = {"tuned_on": list(sources)} if sources else {}
    return {"allocation": "myqasr", "calibration": ["minmax"], **tuned, **options}


def label(allocation, calibration, order="descending", draw=0, name=None):
    shown = f"{name or allocation}/{calibration}"
    return Cell(allocation, calibration, order, draw, shown, "nearest", "-")


def no_clips():
    """In place of public clips, where nothing may be read of them."""
    raise AssertionError("public clips were read")


def no_public(layers) -> PublicModel:
    """A public model of which the layers alone are known, and that it transcribes frames."""
    model = SimpleNamespace(layers=layers, task="transcribe", needs_tokens=False)
    return PublicModel(model, no_clips, threads=1)
