"""Everything that is wanted of a user's clips, in one pass over them where that is possible."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from fedsim.quant.calibrators import Needs
from fedsim.quant.model import Batch, Quantizable
from fedsim.quant.moments import LayerMoments, recording
from fedsim.quant.observe import LayerObservation, observing

M = TypeVar("M", bound=Quantizable)
T = TypeVar("T")
NOTHING = Needs()


@dataclass(frozen=True, eq=False)
class Passed(Generic[T]):
    """What one pass gave.

    `found` is what `sense` returned. `observed` is layer name -> observation, as
    `quant.observe.observe` returns it; None if no ranges are wanted, or with gradients, which take
    a pass of their own. `moments` is layer name -> second moments; None unless wanted.
    """

    found: T
    observed: dict[str, LayerObservation] | None = None
    moments: dict[str, LayerMoments] | None = None


def forward_only(model: Quantizable, batches: Iterator[Batch]) -> None:
    """Run the model on every batch, for a pass in which nothing is sensed."""
    with torch.inference_mode():
        for batch in batches:
            model.forward(batch)


def one_pass(
    model: M,
    batches: Iterable[Batch],
    sense: Callable[[M, Iterator[Batch]], T],
    wanted: Needs = NOTHING,
    *,
    moments: bool = False,
) -> Passed[T]:
    """Sense the clips and, in the same pass, record what later steps on them will need.

    Args:
        model: in full precision.
        batches: of the tuning clips.
        sense: f(model, batches), which runs the model once on each batch, such as `forward_only`.
        wanted: what the calibrations that will follow need.
        moments: whether second moments of the layers' inputs are wanted.
    """
    with ExitStack() as recorders:
        passing, observer, recorder = iter(batches), None, None
        if wanted.ranges and not wanted.fisher:
            observer = recorders.enter_context(observing(model, rows=wanted.rows))
            passing = observer.passing(passing)
        if moments:
            recorder = recorders.enter_context(recording(model))
            passing = recorder.passing(passing)
        found = sense(model, passing)
    return Passed(
        found,
        None if observer is None else observer.observations(),
        None if recorder is None else recorder.moments(),
    )
