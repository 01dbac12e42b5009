"""How a model's layers respond to a user's clips: one number per layer, from one forward pass.

Algorithm 1, line 2: a_l = median over the user's clips of |output of layer l|. All layers are
observed in the same pass. A layer keeps a jittered, evenly spread sample of its output's elements
(one from each stretch of equal length), at most `CAPACITY` of them however much audio there is:
memory is flat and the cost small against the forward. With fewer elements than that the statistics
are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from fedsim.errors import FedsimError
from fedsim.quant.model import Batch, Quantizable, frame_axis
from fedsim.quant.sample import Sample, masked_extremes, spread
from fedsim.registry import Registry

CAPACITY = 1 << 19
"""Elements that a layer keeps at most (float32: 2 MiB a layer)."""

Measure = Callable[["Observed"], float]
MEASURES: Registry[Measure] = Registry("sensitivity")
"""name -> f(observed) -> the sensitivity of one layer."""


@dataclass(frozen=True)
class Observed:
    """What was seen of one layer's output: a sample (n,) float32, and the exact extremes."""

    sample: np.ndarray
    low: float
    high: float


@MEASURES.register("median")
def median(seen: Observed) -> float:
    """Median of |output| (the paper's choice)."""
    size, n = np.abs(seen.sample), len(seen.sample)
    halves = np.partition(size, n // 2)  # at one place only: numpy's fast path
    upper = float(halves[n // 2])
    return upper if n % 2 else (float(halves[: n // 2].max()) + upper) / 2


@MEASURES.register("mean")
def mean(seen: Observed) -> float:
    """Mean of |output|."""
    return float(np.abs(seen.sample).mean(dtype=np.float64))


@MEASURES.register("max")
def maximum(seen: Observed) -> float:
    """Largest output (signed, exact)."""
    return seen.high


@MEASURES.register("abs-max")
def absolute_maximum(seen: Observed) -> float:
    """Largest |output| (exact)."""
    return max(abs(seen.low), abs(seen.high))


@MEASURES.register("std")
def standard_deviation(seen: Observed) -> float:
    """Standard deviation of the output."""
    return float(seen.sample.std(dtype=np.float64))


@MEASURES.register("var")
def variance(seen: Observed) -> float:
    """Variance of the output."""
    return float(seen.sample.var(dtype=np.float64))


NEEDS_EXTREMES = {"max", "abs-max"}
"""Measures of the exact extremes, which cost a look at every element; others need the sample
alone."""


class _Watcher:
    """Forward hooks on every layer; a context manager, so hooks never outlive an error."""

    def __init__(self, model: Quantizable, capacity: int, extremes: bool) -> None:
        modules = dict(model.module.named_modules())
        self.layers = {modules[layer.name]: layer for layer in model.layers}
        self.samples = {layer.name: Sample(capacity) for layer in model.layers}
        self.extremes: dict[str, tuple[float, float]] = {}
        self.want_extremes = extremes
        self.batch: Batch | None = None
        self.places: dict[tuple, torch.Tensor] = {}
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> _Watcher:
        self.handles = [m.register_forward_hook(self._see) for m in self.layers]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self.handles:
            handle.remove()

    def start(self, batch: Batch) -> None:
        self.batch = batch
        self.places = {}

    def _see(self, module: torch.nn.Module, args: tuple, out: torch.Tensor) -> None:
        layer = self.layers[module]
        assert self.batch is not None
        frames = self.batch.speech.get(layer.name, self.batch.frames_out.get(layer.name))
        conv = layer.kind == "conv1d"
        if self.want_extremes:
            low, high = masked_extremes(out, frames, frame_axis(layer.kind))
            old = self.extremes.get(layer.name, (low, high))
            ends = np.minimum(old[0], low), np.maximum(old[1], high)  # NaN stays
            self.extremes[layer.name] = float(ends[0]), float(ends[1])
        sample = self.samples[layer.name]
        per_frame = out.shape[1] if conv else out.shape[-1]
        n = out.numel() if frames is None else int(frames.sum()) * per_frame
        keep = sample.room_for(n)
        flat = out.reshape(-1)
        key = (conv, tuple(out.shape), id(frames), keep)
        if key not in self.places:
            self.places[key] = torch.from_numpy(_places(conv, out.shape, frames, spread(n, keep)))
        sample.add(flat.index_select(0, self.places[key]).numpy())


def _places(
    conv: bool, shape: torch.Size, frames: torch.Tensor | None, index: np.ndarray
) -> np.ndarray:
    """Turn places among the elements that are speech into flat indices of the padded output."""
    if frames is None:
        return index
    per_frame, length = (shape[1], shape[2]) if conv else (shape[-1], shape[1])
    counts = frames.numpy()
    ends = np.cumsum(counts) * per_frame
    clip = np.searchsorted(ends, index, side="right")
    local = index - (ends - counts * per_frame)[clip]
    if conv:  # (B, C, T): the speech of a channel is the first part of its row
        channel, t = np.divmod(local, counts[clip])
        local = channel * length + t
    return clip * (per_frame * length) + local


@torch.inference_mode()
def sense(
    model: Quantizable,
    batches: Iterable[Batch],
    measure: str = "median",
    *,
    capacity: int = CAPACITY,
) -> np.ndarray:
    """Return the sensitivity of each layer, float64 (L,), in the order of `model.layers`.

    One forward pass over `batches` (a stream: nothing of a batch is kept). A layer that the forward
    pass never reaches, or that answers NaN, is a `FedsimError` that names it.
    """
    reduce = MEASURES[measure]
    with _Watcher(model, capacity, measure in NEEDS_EXTREMES) as watcher:
        for batch in batches:
            watcher.start(batch)
            model.forward(batch)
    values = []
    for layer in model.layers:
        kept = watcher.samples[layer.name]
        if not len(kept.values):
            raise FedsimError(
                f"layer {layer.name!r} saw no audio: it is not part of the forward pass; add it to "
                f"model.keep, or give at least one clip"
            )
        low, high = watcher.extremes.get(layer.name, (0.0, 0.0))
        # A median of the rest would look sound: one bad clip among good ones must not hide.
        # The sum is finite unless an element is not (or the elements near float32's end).
        if np.isfinite(kept.values.sum()):
            value = reduce(Observed(kept.values, low, high))
        else:
            value = float(kept.values[np.abs(kept.values).argmax()])
        if not np.isfinite(value):
            raise FedsimError(
                f"layer {layer.name!r} answers the clips with {value}: the model overflows on "
                f"them; check the clips' level and the checkpoint"
            )
        values.append(value)
    return np.asarray(values, dtype=np.float64)
