"""How a model's layers respond to a user's clips: one number per layer, from one forward pass.

Algorithm 1, line 2: a_l = median over the user's clips of |output of layer l|. All layers are
observed in the same pass. A layer keeps a jittered, evenly spread sample of its output's elements
(one from each stretch of equal length), at most `CAPACITY` of them however much audio there is:
memory is flat and the cost small against the forward. With fewer elements than that the statistics
are exact.

What replaces the median in the ablations is in `quant/measures.py`.
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
from fedsim.quant.quantiles import QUANTILES
from fedsim.quant.sample import Sample, masked_extremes, spread

CAPACITY = 1 << 19
"""Elements that a layer keeps at most (float32: 2 MiB a layer)."""


class _AnsweredTwiceError(Exception):
    """A layer answers more than once in a pass: its network uses it in several places."""


class _Recorder:
    """Forward hooks on every layer; a context manager, so hooks never outlive an error.

    Where a batch is the only one, and no `quantiles` are wanted, a layer's value is worked out as
    soon as it has answered: the answer lies in the processor's cache then, and needs not be kept.
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
        # How an output is copied: without signs where nobody asks for them.
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
        """Run the model on a batch, and see what its layers answer."""
        if self.values:
            raise ValueError("a batch said that it is alone in its pass, and here is another")
        self.batch, self.counts, self.places, at_once = batch, {}, {}, self.at_once
        self.at_once &= batch.alone
        try:
            model.forward(batch)
        except _AnsweredTwiceError:  # so its first answer was not all; once more, and all is kept
            self.samples = {name: Sample(self.capacity) for name in self.samples}
            self.values, self.at_once = {}, False
            model.forward(batch)
        self.at_once = at_once

    def value(self, layer: Layer) -> float:
        """Return a layer's sensitivity, once all batches are through."""
        if layer.name not in self.values:
            sample = self.samples[layer.name].values
            assert self.measure is not None
            if self.measure.of_magnitudes and self.copied is not np.abs:  # beside quantiles
                sample = np.abs(sample)
            self._work_out(layer.name, sample)
        return self.values[layer.name]

    def _work_out(self, name: str, sample: np.ndarray) -> None:
        """Take the value of a layer from all that is kept of its output; `sample` is used up."""
        # A median of the rest would look sound: one bad clip among good ones must not hide.
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
        """Return the same as numbers; most layers of a batch share theirs."""
        frames = self._frames(layer)
        if frames is None:
            return None
        if id(frames) not in self.counts:  # the batch keeps it while it runs
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
            ends = np.minimum(old[0], low), np.maximum(old[1], high)  # NaN stays
            self.extremes[layer.name] = float(ends[0]), float(ends[1])
        sample = self.samples[layer.name]
        per_frame = out.shape[1] if conv else out.shape[-1]
        n = out.numel() if counts is None else sum(counts) * per_frame
        if layer.name in self.values:
            raise _AnsweredTwiceError
        keep = sample.room_for(n)
        if keep == n:  # all of it: no places to look for
            kept = _speech(conv, out, counts, self.copied)
        else:
            key = (conv, tuple(out.shape), id(counts), keep)
            if key not in self.places:
                places = _places(conv, out.shape, counts, spread(n, keep))
                self.places[key] = torch.from_numpy(places)
            kept = out.reshape(-1).index_select(0, self.places[key]).numpy()
            self.copied(kept, out=kept)
        if self.at_once and len(kept):
            self._work_out(layer.name, kept)
        else:
            sample.add(kept)


def _speech(
    conv: bool, out: torch.Tensor, counts: list[int] | None, copied: np.ufunc
) -> np.ndarray:
    """Return the elements that are speech, clip by clip, (n,), `copied` for `out` may be reused."""
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
    """Turn places among the elements that are speech into flat indices of the padded output."""
    if counts is None:
        return index
    per_frame, length = (shape[1], shape[2]) if conv else (shape[-1], shape[1])
    frames = np.asarray(counts)
    ends = np.cumsum(frames) * per_frame
    clip = np.searchsorted(ends, index, side="right")
    local = index - (ends - frames * per_frame)[clip]
    if conv:  # (B, C, T): the speech of a channel is the first part of its row
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
    """Return what every layer kept of one forward pass; each has seen something."""
    with _Recorder(model, capacity, measure, quantiles=quantiles) as recorder:
        for batch in batches:
            recorder.run(model, batch)
    for name, kept in recorder.samples.items():
        if name not in recorder.values and not len(kept.values):
            raise FedsimError(
                f"layer {name!r} saw no audio: it is not part of the forward pass; add it to "
                f"model.keep, or give at least one clip"
            )
    return recorder


@torch.inference_mode()
def quantiles(
    model: Quantizable, batches: Iterable[Batch], *, capacity: int = CAPACITY
) -> np.ndarray:
    """Return the distribution of each layer's output: its `QUANTILES`, float64 (L, Q).

    For histograms of a study (the paper's Fig. 2), in one forward pass as `sense`.
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

    One forward pass over `batches` (a stream: nothing of a batch is kept). A layer that the forward
    pass never reaches, or that answers NaN, is a `FedsimError` that names it.
    """
    MEASURES[measure]  # an unknown one is told at once
    return _values(model, _record(model, batches, capacity, measure))


@torch.inference_mode()
def sense_and_quantiles(
    model: Quantizable, batches: Iterable[Batch], measure: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `sense` and `quantiles` return, by one forward pass."""
    MEASURES[measure]
    recorder = _record(model, batches, CAPACITY, measure, quantiles=True)
    distribution = _quantiles(model, recorder)  # first, for values use samples up
    return _values(model, recorder), distribution


def _quantiles(model: Quantizable, recorder: _Recorder) -> np.ndarray:
    return np.stack([_spread(recorder.samples[layer.name].values) for layer in model.layers])


def _spread(values: np.ndarray) -> np.ndarray:
    """Return the `QUANTILES` of a sample, by straight lines between neighbours, float64 (Q,).

    Sorting float32 is eight times as fast as numpy's own quantiles, which it equals.
    """
    places = np.asarray(QUANTILES) * (len(values) - 1)
    ordered = np.sort(values)
    below = places.astype(int)
    low = ordered[below].astype(np.float64)
    high = ordered[np.minimum(below + 1, len(values) - 1)].astype(np.float64)
    return low + (high - low) * (places - below)


def _values(model: Quantizable, recorder: _Recorder) -> np.ndarray:
    values = []
    for layer in model.layers:
        value = recorder.value(layer)
        if not np.isfinite(value):
            raise FedsimError(
                f"layer {layer.name!r} answers the clips with {value}: the model overflows on "
                f"them; check the clips' level and the checkpoint"
            )
        values.append(value)
    return np.asarray(values, dtype=np.float64)


def _finite(values: np.ndarray) -> bool:
    """Return whether all of `values` (n,) are finite.

    Their product with themselves is, unless one of them is not or some are past 1e16: the quickest
    look there is at every element.
    """
    return bool(np.isfinite(values.dot(values))) or bool(np.isfinite(values).all())
