"""How a model's layers respond to a user's clips: one number per layer, from one forward pass.

Algorithm 1, line 2: a_l = median over the user's clips of |output of layer l|. All layers are
observed in the same pass. A jittered, evenly spread sample of each layer's output is kept (one
element from each stretch of equal length), at most `CAPACITY` elements however much audio there is:
memory stays constant, and the cost is small compared with the forward pass. With fewer elements
than that, the statistics are exact.

The measures that replace the median in the ablations are in `quant/measures.py`. On a GPU nothing
is fetched before the pass is over (`quant/accelerated.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from fedsim.errors import FedsimError
from fedsim.quant.accelerated import around_quantiles
from fedsim.quant.measures import MEASURES
from fedsim.quant.model import Batch, Quantizable
from fedsim.quant.output_recorder import OutputRecorder
from fedsim.quant.quantiles import between, quantiles_of
from fedsim.quant.sample import fetched

CAPACITY = 1 << 19
"""Elements kept per layer, at most (2 MiB per layer in float32)."""


@dataclass(frozen=True, eq=False)
class Sensed:
    """What a pass showed of the layers' outputs; None where it was not wanted.

    `values` float64 (L,): the sensitivity of each layer. `quantiles` float64 (L, Q): the
    distribution of each layer's output.
    """

    values: np.ndarray | None = None
    quantiles: np.ndarray | None = None


@dataclass(frozen=True)
class Sensing:
    """What is sensed in a pass: the sensitivity by `measure`, unless that is empty, and the
    quantiles of the outputs, if wanted."""

    measure: str = ""
    quantiles: bool = False

    def recorder(self, model: Quantizable, capacity: int = CAPACITY) -> OutputRecorder:
        """Return what records a pass, a context manager.

        Raises `FedsimError` for an unknown measure.
        """
        return OutputRecorder(model, capacity, self.measure, quantiles=self.quantiles)

    @torch.inference_mode()
    def result(self, model: Quantizable, recorder: OutputRecorder) -> Sensed:
        """Return what the recorder of a finished pass holds.

        Raises `FedsimError` for a layer that received nothing or whose output is not finite.
        """
        _require_all(recorder)
        # Quantiles first, because a measure may reorder the samples.
        distribution = _quantiles(model, recorder) if self.quantiles else None
        return Sensed(_values(model, recorder) if self.measure else None, distribution)

    @torch.inference_mode()
    def run(self, model: Quantizable, batches: Iterable[Batch]) -> Sensed:
        """Return what one forward pass over `batches` shows; the layers' outputs are recorded only
        if anything is sensed. Raises as `recorder` and `result` do."""
        if self == Sensing():
            for batch in batches:
                model.forward(batch)
            return Sensed()
        return self.result(model, _record(model, batches, self))


def _record(
    model: Quantizable, batches: Iterable[Batch], what: Sensing, capacity: int = CAPACITY
) -> OutputRecorder:
    """Run one forward pass over `batches` and return its record."""
    with what.recorder(model, capacity) as recorder:
        for batch in batches:
            recorder.run(model, batch)
    return recorder


def _require_all(recorder: OutputRecorder) -> None:
    """Raise `FedsimError` for a layer that received nothing."""
    for name, kept in recorder.samples.items():
        if name not in recorder.values and not len(kept.values):
            raise FedsimError(
                f"layer {name!r} received no audio: either it is not part of the forward pass or "
                f"there is no clip; add the layer to model.keep, or give at least one clip"
            )


def quantiles(
    model: Quantizable, batches: Iterable[Batch], *, capacity: int = CAPACITY
) -> np.ndarray:
    """Return the distribution of each layer's output: its `QUANTILES`, float64 (L, Q).

    For the histograms of a study (the paper's Fig. 2). One forward pass; errors as in `sense`.
    """
    found = _sensed(model, batches, Sensing(quantiles=True), capacity).quantiles
    assert found is not None
    return found


def sense(
    model: Quantizable,
    batches: Iterable[Batch],
    measure: str = "median",
    *,
    capacity: int = CAPACITY,
) -> np.ndarray:
    """Return the sensitivity of each layer, float64 (L,), in the order of `model.layers`.

    One forward pass over `batches`, which may be a stream: no batch is kept.

    Args:
        model: in full precision.
        batches: of the clips.
        measure: name of a sensitivity measure.
        capacity: elements kept per layer, at most.

    Raises:
        FedsimError: for a layer that the pass never reaches or whose output is not finite, naming
            it, and for an unknown measure.
    """
    MEASURES[measure]  # an empty name, too, fails before the pass
    found = _sensed(model, batches, Sensing(measure), capacity).values
    assert found is not None
    return found


@torch.inference_mode()
def _sensed(model: Quantizable, batches: Iterable[Batch], what: Sensing, capacity: int) -> Sensed:
    return what.result(model, _record(model, batches, what, capacity))


def _quantiles(model: Quantizable, recorder: OutputRecorder) -> np.ndarray:
    samples = [recorder.samples[layer.name].values for layer in model.layers]
    if not isinstance(samples[0], torch.Tensor):
        return np.stack([quantiles_of(sample) for sample in samples])
    ends = torch.stack([around_quantiles(sample) for sample in samples]).cpu().numpy()
    pairs = zip(samples, ends, strict=True)
    return np.stack([between(len(sample), low, high) for sample, (low, high) in pairs])


def _values(model: Quantizable, recorder: OutputRecorder) -> np.ndarray:
    values = []
    found = fetched([recorder.value(layer) for layer in model.layers])
    for layer, value in zip(model.layers, found, strict=True):
        if not np.isfinite(value):
            raise FedsimError(
                f"layer {layer.name!r} outputs {value} on the clips: the model overflows; check "
                f"the clips' level and the checkpoint"
            )
        values.append(value)
    return np.asarray(values, dtype=np.float64)
