"""Scenarios of which only the methods matter, and cells of them."""

from __future__ import annotations

from fedsim.scenario.cells import Cell
from fedsim.scenario.schema import Scenario

DEPTHS = (2, 4, 8)


def scenario(*methods, seed=5, **quantization) -> Scenario:
    """A scenario of these methods, which rounds as the paper does unless `quantization` differs."""
    return Scenario.model_validate(
        {
            "name": "toy",
            "seed": seed,
            "model": {"id": "none"},
            "corpus": {"path": "none", "group_by": "speaker"},
            "clients": {"budget_mb": 1.0, "bit_depths": list(DEPTHS)},
            "quantization": {"rounding": "nearest", **quantization},
            "methods": list(methods),
        }
    )


def myqasr(*sources, **options):
    tuned = {"tuned_on": list(sources)} if sources else {}
    return {"allocation": "myqasr", "calibration": ["minmax"], **tuned, **options}


def label(
    allocation,
    calibration,
    order="descending",
    draw=0,
    name=None,
    rounding="nearest",
    moments="-",
    suffix="",
):
    words = f"{name or allocation}/{calibration}{suffix}"
    return Cell(allocation, calibration, order, draw, words, rounding, moments)
