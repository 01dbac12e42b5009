"""How weights are given their codes: a registry. Imports no torch, so that scenarios are checked
without it.

    nearest       the paper: the nearest code, the scale from the largest magnitude
    scaled        the nearest code, the scale of least squared error
    compensated   the error of each code is made good by the codes that follow (GPTQ)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedsim.registry import Lazy, Registry


@dataclass(frozen=True)
class Rounding:
    """One way to give weights their codes."""

    round: Callable[..., Any]
    """f(tasks: Sequence[`RoundingTask`], `WeightFormat`) -> list of `PackedWeight`, one per task.
    What it returns for a task depends neither on the other tasks nor on their order."""
    summary: str
    meaning: str
    """What it does in a few plain words, for readers of a report."""
    reads_moments: bool = False
    """Whether it reads second moments of the layers' inputs (`quant/moments.py`)."""
    probe: str = "nearest"
    """The rounding, one that reads no moments, with which a device measures what each bit depth
    costs on its own clips: the order of the layers is much the same (docs/results/smaller.md)."""
    on_gpu: Callable[..., Any] | None = None
    """The same, for weights on a GPU that has float64; None: they are brought to the processor."""


MOMENTS = {
    "public": "rounding fits the inputs that public clips cause, and nobody's own",
    "own": "rounding fits the inputs that the client's own clips cause",
    "blend": "rounding fits the inputs of public clips and of the client's own, blended",
}
"""Whose second moments a rounding reads, for readers of a report."""
ROUNDINGS: Registry[Rounding] = Registry("rounding")
ROUNDINGS.add(
    "nearest",
    Rounding(
        Lazy("fedsim.quant.rounding.independent:nearest"),
        on_gpu=Lazy("fedsim.quant.rounding.on_gpu:nearest"),
        summary="The nearest code; the scale follows the largest magnitude, as in the paper.",
        meaning="each weight becomes the nearest of its scale's values",
    ),
)
ROUNDINGS.add(
    "scaled",
    Rounding(
        Lazy("fedsim.quant.rounding.independent:scaled"),
        on_gpu=Lazy("fedsim.quant.rounding.on_gpu:scaled"),
        summary="The nearest code, with the scale of least squared error; reads no audio.",
        meaning="each weight becomes the nearest value of the scale that fits the weights best",
        probe="scaled",
    ),
)
ROUNDINGS.add(
    "compensated",
    Rounding(
        Lazy("fedsim.quant.rounding.compensated:compensated"),
        on_gpu=Lazy("fedsim.quant.rounding.on_gpu_search:compensated"),
        summary="Each code makes good the errors of those before it, on the inputs that the layer"
        " receives (GPTQ).",
        meaning="weights are rounded one after the other, and each corrects the errors so far",
        reads_moments=True,
    ),
)
