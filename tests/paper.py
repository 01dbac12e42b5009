"""The paper's choices, for tests that are about something else than how models are quantized: they
need no public clips."""

from __future__ import annotations

from typing import Any

QUANTIZATION: dict[str, Any] = {
    "weights": "per_channel",
    "zero_points": False,
    "rounding": "nearest",
    "activations": "static",
}
"""The section `quantization` of a scenario."""
OPTIONS: dict[str, Any] = {
    "allocation": "myqasr",
    "rounding": "nearest",
    "weights": "per_channel",
    "zero_points": False,
    "calibration": "cosine",
}
"""The same as arguments of `personalize`."""
