"""Sensing and observing for calibration in one pass over the clips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from fedsim.quant.calibrators import needs, on_user_data
from fedsim.quant.model import Batch, Quantizable
from fedsim.quant.observe import LayerObservation, observing

M = TypeVar("M", bound=Quantizable)
T = TypeVar("T")


def sense_and_observe(
    model: M,
    batches: Iterable[Batch],
    sense: Callable[[M, Iterator[Batch]], T],
    calibrations: Iterable[str],
) -> tuple[T, dict[str, LayerObservation] | None]:
    """Sense the clips and, in the same pass, observe what later calibrations on them will need.

    Args:
        model: in full precision.
        batches: of the tuning clips.
        sense: f(model, batches), which runs the model once on each batch.
        calibrations: names of the calibrations that will follow.

    Returns:
        What `sense` returned, and layer name -> observation, as `quant.observe.observe` returns
        it. None in place of the observations if no calibration looks at the user's clips, or if one
        needs gradients, which take a pass of their own.
    """
    following = on_user_data(calibrations)
    wanted = needs(following)
    if not following or wanted.fisher:
        return sense(model, iter(batches)), None
    with observing(model, rows=wanted.rows) as recorder:
        found = sense(model, recorder.passing(batches))
    return found, recorder.observations()
