"""How the inputs of layers are quantized, by name, and what that needs from a pass over the clips.

Most calibrations set one static range per layer. With `dynamic` the range is that of each vector,
found while the model runs, and with `float` inputs are not quantized at all.

The code is in `fedsim.quant.calibration`, which imports torch; scenarios are checked without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fedsim.registry import Lazy, Registry


@dataclass(frozen=True)
class Calibrator:
    """One way to choose the range of a layer's input."""

    find: Callable[..., Any] | None
    """f(`Layer`, `LayerObservation`, `LayerWeights`, activation bits) -> `Range` of its input; None
    if there are no static ranges."""
    summary: str
    meaning: str
    """What it does in a few plain words, for readers of a report."""
    rows: bool = True
    """Whether it tries candidate ranges on rows of the layer's input."""
    fisher: bool = False
    """Whether it needs gradients, and so a pass of its own with the whole model in memory."""
    user_data: bool = True
    """Whether it looks at the user's clips; if not, at a public signal."""
    bits: bool = True
    """Whether inputs are quantized."""
    search_macs: Callable[..., float] | None = None
    """f(`Layer`, number of output frames) -> MACs beyond the observing pass; None means zero."""

    @property
    def static(self) -> bool:
        """Whether it sets a static range for each layer."""
        return self.find is not None


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
        summary="The range observed on public, seeded, speech-shaped noise: no user data at all.",
        meaning="activation ranges from noise: no clip of any user is used",
        rows=False,
        user_data=False,
    ),
)
CALIBRATORS.add(
    "cosine",
    Calibrator(
        Lazy("fedsim.quant.calibration:cosine"),
        summary="The share of the observed range whose output is closest in angle to full"
        " precision.",
        meaning="activation ranges that preserve the direction of each layer's output",
        search_macs=Lazy("fedsim.quant.calibration:cosine_macs"),
    ),
)
CALIBRATORS.add(
    "hessian",
    Calibrator(
        Lazy("fedsim.quant.calibration:hessian"),
        summary="The share of the observed range with the smallest Fisher-weighted squared output"
        " error.",
        meaning="activation ranges that change the model's output least",
        fisher=True,
        search_macs=Lazy("fedsim.quant.calibration:search_macs"),
    ),
)


CALIBRATORS.add(
    "dynamic",
    Calibrator(
        None,
        summary="No calibration: each input vector of a linear layer has its own range, found while"
        " the model runs; inputs of convolutions stay in floats.",
        meaning="activation ranges that each vector sets for itself while the model runs",
        rows=False,
        user_data=False,
    ),
)
CALIBRATORS.add(
    "float",
    Calibrator(
        None,
        summary="No calibration: weights only are quantized, and inputs stay in floats.",
        meaning="activations are not quantized",
        rows=False,
        user_data=False,
        bits=False,
    ),
)


@dataclass(frozen=True)
class Needs:
    """What a pass over the clips must record so that some calibrations can be made from it."""

    ranges: bool = False
    rows: bool = False
    fisher: bool = False


def needs(calibrations: Iterable[str]) -> Needs:
    """Return what a pass must record for all of these; raises `FedsimError` for an unknown name."""
    chosen = [CALIBRATORS[name] for name in calibrations]
    return Needs(
        any(c.static for c in chosen), any(c.rows for c in chosen), any(c.fisher for c in chosen)
    )


def on_user_data(calibrations: Iterable[str]) -> set[str]:
    """Return the calibrations, of those given, that look at the user's clips."""
    return {name for name in calibrations if CALIBRATORS[name].user_data}
