"""The ways to calibrate, by name, and what each asks of a pass over the clips.

The code is in `fedsim.quant.calibration`, which imports torch; scenarios are checked without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fedsim.registry import Lazy, Registry


@dataclass(frozen=True)
class Calibrator:
    """One way to set the range of a layer's input."""

    find: Callable[..., Any]
    """f(`Layer`, `LayerObservation`, `LayerWeights`, activation bits) -> `Range` of its input."""
    summary: str
    meaning: str
    """In a few plain words, for a reader of a report."""
    rows: bool = True
    """Whether it tries candidate ranges on rows of the layer's input."""
    fisher: bool = False
    """Whether it needs gradients, and so a pass of its own with the whole model in memory."""
    user_data: bool = True
    """Whether it looks at the user's clips, and not at a public signal in their place."""
    search_macs: Callable[..., float] | None = None
    """f(`Layer`, positions at which it is applied) -> MACs beyond the pass that observes; None for
    nothing."""


CALIBRATORS: Registry[Calibrator] = Registry("calibration")

CALIBRATORS.add(
    "minmax",
    Calibrator(
        Lazy("fedsim.quant.calibration:minmax"),
        summary="The observed range of the layer's input.",
        meaning="activation ranges as wide as the clips need",
        rows=False,
    ),
)
CALIBRATORS.add(
    "none",
    Calibrator(
        Lazy("fedsim.quant.calibration:minmax"),
        summary="The range that a public, seeded, speech-shaped noise gives: no user data at all.",
        meaning="activation ranges from noise: no clip of any user is used",
        rows=False,
        user_data=False,
    ),
)
CALIBRATORS.add(
    "cosine",
    Calibrator(
        Lazy("fedsim.quant.calibration:cosine"),
        summary="The share of the observed range whose output is nearest in angle to full"
        " precision.",
        meaning="activation ranges that keep each layer's output in its direction",
        search_macs=Lazy("fedsim.quant.calibration:cosine_macs"),
    ),
)
CALIBRATORS.add(
    "hessian",
    Calibrator(
        Lazy("fedsim.quant.calibration:hessian"),
        summary="The share of the observed range with the least squared output error under the"
        " Fisher.",
        meaning="activation ranges that change the model's answer least",
        fisher=True,
        search_macs=Lazy("fedsim.quant.calibration:search_macs"),
    ),
)


@dataclass(frozen=True)
class Needs:
    """What a pass must gather so that some calibrations can be made from it."""

    rows: bool = False
    fisher: bool = False


def needs(calibrations: Iterable[str]) -> Needs:
    """Return what a pass must gather for all of these; `FedsimError` for an unknown name."""
    chosen = [CALIBRATORS[name] for name in calibrations]
    return Needs(any(c.rows for c in chosen), any(c.fisher for c in chosen))


def on_user_data(calibrations: Iterable[str]) -> set[str]:
    """Return those of the calibrations that look at the user's clips."""
    return {name for name in calibrations if CALIBRATORS[name].user_data}
