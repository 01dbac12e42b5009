"""Sensing and calibrating by one pass over the clips: neither computes what the other has seen."""

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
    """Return what `sense` makes of one pass, and what calibrations on the same clips will ask.

    Args:
        model: in full precision.
        batches: of the tuning clips.
        sense: runs the model once on the batches that it is given.
        calibrations: names of those that will follow.

    Returns:
        What `sense` returned, and layer name -> observation, as `quant.observe.observe` gives it;
        None where no calibration looks at the user's clips, and where one needs gradients, which
        take a pass of their own.
    """
    following = on_user_data(calibrations)
    wanted = needs(following)
    if not following or wanted.fisher:
        return sense(model, iter(batches)), None
    with observing(model, rows=wanted.rows) as recorder:
        found = sense(model, recorder.passing(batches))
    return found, recorder.observations()
