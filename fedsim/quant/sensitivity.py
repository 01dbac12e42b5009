"""How a model's layers respond to a user's clips: one number per layer, from one forward pass.

Algorithm 1, line 2: a_l = median over the user's clips of |output of layer l|. All layers are
observed in the same pass. A jittered, evenly spread sample of each layer's output is kept (one
element from each stretch of equal length), at most `CAPACITY` elements however much audio there is:
memory stays constant, and the cost is small compared with the forward pass. With fewer elements
than that, the statistics are exact.

The measures that replace the median in the ablations are in `quant/measures.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from fedsim.errors import FedsimError
from fedsim.quant.distances import OutputDistance
from fedsim.quant.layers import Layer
from fedsim.quant.measures import MEASURES, Observed
from fedsim.quant.model import Batch, Quantizable, frame_axis
from fedsim.quant.quantiles import quantiles_of
from fedsim.quant.sample import Sample, masked_extremes, spread

CAPACITY = 1 << 19
"""Elements kept per layer, at most (2 MiB per layer in float32)."""


class _CalledTwiceError(Exception):
    """A layer is called more than once in a pass: its network uses it in several places."""


class _Recorder:
    """Forward hooks on every layer; a context manager, so that hooks never outlive an error.

    If a batch is the only one of its pass, and no `quantiles` are wanted, a layer's value is
    computed as soon as the layer was called: its output is still in the processor's cache then, and
    need not be kept.
    """

    def __init__(
        self, model: Quantizable, capacity: int, measure: str, *, quantiles: bool = False
    ) -> None:
        self.measure = MEASURES[measure] if measure else None
        self.capacity = capacity
        self.layers = {model.module.get_submodule(layer.name): layer for layer in model.layers}
        self.samples = {layer.name: Sample(capacity) for layer in model.layers}
        self.values: dict[str, float] = {}
        chosen = self.measure
        self.at_once = chosen is not None and chosen.change is None and not quantiles
        # How an output is copied: without its signs if nothing needs them.
        magnitudes = chosen is not None and chosen.of_magnitudes
        self.copied = np.abs if magnitudes and not quantiles else np.positive
        self.extremes: dict[str, tuple[float, float]] = {}
        self.want_extremes = chosen is not None and chosen.needs_extremes
        self.changes: dict[str, OutputDistance] = {}
        if chosen is not None and chosen.change is not None:
            for module, layer in self.layers.items():
                self.changes[layer.name] = chosen.change(layer.kind, module, capacity)
        self.batch: Batch | None = None
        self.counts: dict[int, list[int]] = {}
        self.places: dict[tuple, torch.Tensor] = {}
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> _Recorder:
        self.handles = [m.register_forward_hook(self._see) for m in self.layers]
        if self.changes:
            hook = self._compare
            self.handles += [m.register_forward_hook(hook, with_kwargs=True) for m in self.layers]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self.handles:
            handle.remove()

    def run(self, model: Quantizable, batch: Batch) -> None:
        """Run the model on a batch and record the outputs of its layers."""
        if self.values:
            raise ValueError("a batch marked `alone` is not the only one of its pass; unmark it")
        self.batch, self.counts, self.places, at_once = batch, {}, {}, self.at_once
        self.at_once &= batch.alone
        try:
            model.forward(batch)
        except _CalledTwiceError:  # its first output was not all: run again, keeping everything
            self.samples = {name: Sample(self.capacity) for name in self.samples}
            self.values, self.at_once = {}, False
            model.forward(batch)
        self.at_once = at_once

    def value(self, layer: Layer) -> float:
        """Return a layer's sensitivity, once all batches have been run."""
        if layer.name not in self.values:
            sample = self.samples[layer.name].values
            assert self.measure is not None
            if self.measure.of_magnitudes and self.copied is not np.abs:  # signed, for quantiles
                sample = np.abs(sample)
            self._compute(layer.name, sample)
        return self.values[layer.name]

    def _compute(self, name: str, sample: np.ndarray) -> None:
        """Compute the value of a layer from the sample of its output, which may be reordered."""
        # The median of the rest would look sound: one bad clip among good ones must not go unseen.
        if not _finite(sample):
            self.values[name] = float(sample[np.abs(sample).argmax()])
            return
        low, high = self.extremes.get(name, (0.0, 0.0))
        seen = Observed(sample, low, high, self.changes.get(name))
        assert self.measure is not None
        self.values[name] = self.measure.value(seen)

    def _frames(self, layer: Layer) -> torch.Tensor | None:
        assert self.batch is not None
        return self.batch.speech.get(layer.name, self.batch.frames_out.get(layer.name))

    def _counts(self, layer: Layer) -> list[int] | None:
        """Return the same as numbers; most layers of a batch share one tensor."""
        frames = self._frames(layer)
        if frames is None:
            return None
        if id(frames) not in self.counts:  # an id is unique while the batch holds the tensor
            self.counts[id(frames)] = frames.tolist()
        return self.counts[id(frames)]

    def _compare(
        self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any], out: torch.Tensor
    ) -> None:
        layer = self.layers[module]
        self.changes[layer.name].see(args, kwargs, out, self._frames(layer))

    def _see(self, module: torch.nn.Module, args: tuple, out: torch.Tensor) -> None:
        layer = self.layers[module]
        counts = self._counts(layer)
        conv = layer.kind == "conv1d"
        if self.want_extremes:
            low, high = masked_extremes(out, counts, frame_axis(layer.kind))
            old = self.extremes.get(layer.name, (low, high))
            ends = np.minimum(old[0], low), np.maximum(old[1], high)  # keep NaN
            self.extremes[layer.name] = float(ends[0]), float(ends[1])
        sample = self.samples[layer.name]
        per_frame = out.shape[1] if conv else out.shape[-1]
        n = out.numel() if counts is None else sum(counts) * per_frame
        if layer.name in self.values:
            raise _CalledTwiceError
        keep = sample.room_for(n)
        if keep == n:  # everything is kept: no places to choose
            kept = _speech(conv, out, counts, self.copied)
        else:
            key = (conv, tuple(out.shape), id(counts), keep)
            if key not in self.places:
                places = _places(conv, out.shape, counts, spread(n, keep))
                self.places[key] = torch.from_numpy(places)
            kept = out.reshape(-1).index_select(0, self.places[key]).numpy()
            self.copied(kept, out=kept)
        if self.at_once and len(kept):
            self._compute(layer.name, kept)
        else:
            sample.add(kept)


def _speech(
    conv: bool, out: torch.Tensor, counts: list[int] | None, copied: np.ufunc
) -> np.ndarray:
    """Return the elements that are speech, clip by clip, (n,); a copy, as `out` may be reused."""
    values = out.numpy()
    if counts is None:
        return copied(values.reshape(-1))
    clips = [values[b, :, :n] if conv else values[b, :n] for b, n in enumerate(counts)]
    kept, begin = np.empty(sum(clip.size for clip in clips), values.dtype), 0
    for clip in clips:
        copied(clip, out=kept[begin : begin + clip.size].reshape(clip.shape))
        begin += clip.size
    return kept


def _places(
    conv: bool, shape: torch.Size, counts: list[int] | None, index: np.ndarray
) -> np.ndarray:
    """Turn places among the elements that are speech into flat indices into the padded output."""
    if counts is None:
        return index
    per_frame, length = (shape[1], shape[2]) if conv else (shape[-1], shape[1])
    frames = np.asarray(counts)
    ends = np.cumsum(frames) * per_frame
    clip = np.searchsorted(ends, index, side="right")
    local = index - (ends - frames * per_frame)[clip]
    if conv:  # (B, C, T): speech is the first part of each channel's row
        channel, t = np.divmod(local, frames[clip])
        local = channel * length + t
    return clip * (per_frame * length) + local


def _record(
    model: Quantizable,
    batches: Iterable[Batch],
    capacity: int,
    measure: str,
    *,
    quantiles: bool = False,
) -> _Recorder:
    """Run one forward pass over `batches` and return its record, with something of each layer.

    Raises `FedsimError` for a layer that received nothing.
    """
    with _Recorder(model, capacity, measure, quantiles=quantiles) as recorder:
        for batch in batches:
            recorder.run(model, batch)
    for name, kept in recorder.samples.items():
        if name not in recorder.values and not len(kept.values):
            raise FedsimError(
                f"layer {name!r} received no audio: either it is not part of the forward pass or "
                f"there is no clip; add the layer to model.keep, or give at least one clip"
            )
    return recorder


@torch.inference_mode()
def quantiles(
    model: Quantizable, batches: Iterable[Batch], *, capacity: int = CAPACITY
) -> np.ndarray:
    """Return the distribution of each layer's output: its `QUANTILES`, float64 (L, Q).

    For the histograms of a study (the paper's Fig. 2). One forward pass; errors as in `sense`.
    """
    return _quantiles(model, _record(model, batches, capacity, "", quantiles=True))


@torch.inference_mode()
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
    MEASURES[measure]  # an unknown name fails before the pass
    return _values(model, _record(model, batches, capacity, measure))


@torch.inference_mode()
def sense_and_quantiles(
    model: Quantizable, batches: Iterable[Batch], measure: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `sense` and `quantiles` return, from one forward pass."""
    MEASURES[measure]
    recorder = _record(model, batches, CAPACITY, measure, quantiles=True)
    distribution = _quantiles(model, recorder)  # first, because a measure may reorder the samples
    return _values(model, recorder), distribution


def _quantiles(model: Quantizable, recorder: _Recorder) -> np.ndarray:
    return np.stack([quantiles_of(recorder.samples[layer.name].values) for layer in model.layers])


def _values(model: Quantizable, recorder: _Recorder) -> np.ndarray:
    values = []
    for layer in model.layers:
        value = recorder.value(layer)
        if not np.isfinite(value):
            raise FedsimError(
                f"layer {layer.name!r} outputs {value} on the clips: the model overflows; check "
                f"the clips' level and the checkpoint"
            )
        values.append(value)
    return np.asarray(values, dtype=np.float64)


def _finite(values: np.ndarray) -> bool:
    """Return whether all of `values` (n,) are finite.

    Their dot product with themselves is the fastest test: it is finite unless one of them is not,
    or some are so large (about 1e16) that it overflows.
    """
    return bool(np.isfinite(values.dot(values))) or bool(np.isfinite(values).all())
