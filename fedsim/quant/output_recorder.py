"""Records the outputs of all layers in a forward pass, for the measures of sensitivity.

Of each layer a jittered, evenly spread sample is kept, of bounded size. With fewer elements than
that, the statistics are exact. On a GPU nothing is fetched before the pass is over.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedsim.quant.accelerated import on_processor, unless_broken
from fedsim.quant.distances import OutputDistance
from fedsim.quant.layers import Layer
from fedsim.quant.measures import MEASURES, Observed
from fedsim.quant.model import Batch, Quantizable, frame_axis
from fedsim.quant.sample import Extremes, Sample, fetched, spread
from fedsim.quant.spoken import speech, speech_places


class _CalledTwiceError(Exception):
    """A layer is called more than once in a pass: its network uses it in several places."""


class OutputRecorder:
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
        self.values: dict[str, Any] = {}  # numbers, or tensors without dimensions on a GPU
        chosen = self.measure
        self.may_be_at_once = chosen is not None and chosen.change is None and not quantiles
        self.at_once = False  # but while `run` has the only batch of a pass
        # How an output is copied: without its signs if nothing needs them.
        magnitudes = chosen is not None and chosen.of_magnitudes
        self.copied = np.abs if magnitudes and not quantiles else np.positive
        self.extremes: dict[str, Extremes] = {}
        self.want_extremes = chosen is not None and chosen.needs_extremes
        self.changes: dict[str, OutputDistance] = {}
        if chosen is not None and chosen.change is not None:
            for module, layer in self.layers.items():
                self.changes[layer.name] = chosen.change(layer.kind, module, capacity)
        self.batch: Batch | None = None
        self.counts: dict[int, list[int]] = {}
        self.places: dict[tuple, torch.Tensor] = {}
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> OutputRecorder:
        self.handles = [m.register_forward_hook(self._see) for m in self.layers]
        if self.changes:
            hook = self._compare
            self.handles += [m.register_forward_hook(hook, with_kwargs=True) for m in self.layers]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self.handles:
            handle.remove()

    def start(self, batch: Batch) -> None:
        """Record the outputs that follow, of this batch."""
        if self.values:
            raise ValueError("a batch marked `alone` is not the only one of its pass; unmark it")
        self.batch, self.counts, self.places = batch, {}, {}

    def stop(self) -> None:
        """Record nothing until the next batch starts."""
        self.batch = None

    def run(self, model: Quantizable, batch: Batch) -> None:
        """Run the model on a batch and record the outputs of its layers."""
        self.start(batch)
        self.at_once = self.may_be_at_once and batch.alone
        try:
            model.forward(batch)
        except _CalledTwiceError:  # its first output was not all: run again, keeping everything
            self.samples = {name: Sample(self.capacity) for name in self.samples}
            self.values, self.at_once = {}, False
            model.forward(batch)
        self.at_once = False

    def value(self, layer: Layer) -> Any:
        """Return a layer's sensitivity, once all batches have been run: a number, or a tensor
        without dimensions on a GPU."""
        if layer.name not in self.values:
            sample = self.samples[layer.name].values
            assert self.measure is not None
            if self.measure.of_magnitudes and self.copied is not np.abs:  # signed, for quantiles
                sample = abs(sample)
            self._compute(layer.name, sample)
        return self.values[layer.name]

    def _compute(self, name: str, sample: Any) -> None:
        """Compute the value of a layer from the sample of its output, which may be reordered."""
        assert self.measure is not None
        change = self.changes.get(name)
        ends = self.extremes[name].ends if name in self.extremes else (0.0, 0.0)
        if isinstance(sample, torch.Tensor) and self.measure.on_gpu is not None:
            value = self.measure.on_gpu(Observed(sample, ends[0], ends[1], change))
            self.values[name] = unless_broken(sample, value)
            return
        if isinstance(sample, torch.Tensor):  # of a measure that knows arrays only
            sample = sample.cpu().numpy()
        low, high = fetched(ends)
        # The median of the rest would look sound: one bad clip among good ones must not go unseen.
        if not _finite(sample):
            self.values[name] = float(sample[np.abs(sample).argmax()])
            return
        self.values[name] = self.measure.value(Observed(sample, low, high, change))

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
        if self.batch is None:
            return
        layer, part = self.layers[module], self.batch.part
        args = tuple(part(x) if isinstance(x, torch.Tensor) else x for x in args)
        self.changes[layer.name].see(args, kwargs, part(out), self._frames(layer))

    def _see(self, module: torch.nn.Module, args: tuple, out: torch.Tensor) -> None:
        if self.batch is None:  # the pass is another client's
            return
        layer = self.layers[module]
        if layer.kind == "embedding" and out.shape[:2] == (self.batch.of, self.batch.of):
            # A bias between positions (WavLM) has no axis of clips, and as many positions here.
            raise ValueError(f"of an output {tuple(out.shape)} either axis may be that of clips")
        out = self.batch.part(out)
        counts = self._counts(layer)
        conv = layer.kind == "conv1d"
        out = out if out.dtype == torch.float32 else out.float()
        if self.want_extremes:
            ends = self.extremes.setdefault(layer.name, Extremes())
            ends.add(out, counts, frame_axis(layer.kind))
        sample = self.samples[layer.name]
        per_frame = out.shape[1] if conv else out.shape[-1]
        n = out.numel() if counts is None else sum(counts) * per_frame
        if layer.name in self.values:
            raise _CalledTwiceError
        kept = self._kept(conv, out, counts, n, sample.room_for(n))
        if self.at_once and len(kept):
            self._compute(layer.name, kept)
        else:
            sample.add(kept)

    def _kept(
        self, conv: bool, out: torch.Tensor, counts: list[int] | None, n: int, keep: int
    ) -> Any:
        """Return a copy of `keep` of the n elements of an output that are speech."""
        if keep == n and on_processor(out):  # everything is kept: no places to choose
            return speech(conv, out, counts, self.copied)
        key = (conv, tuple(out.shape), id(counts), keep)
        if key not in self.places:
            places = speech_places(conv, out.shape, counts, spread(n, keep))
            self.places[key] = torch.from_numpy(places).to(out.device)
        chosen = out.reshape(-1).index_select(0, self.places[key])
        if not on_processor(out):
            return chosen.abs() if self.copied is np.abs else chosen
        kept = chosen.numpy()
        self.copied(kept, out=kept)
        return kept


def _finite(values: np.ndarray) -> bool:
    """Return whether all of `values` (n,) are finite.

    Their dot product with themselves is the fastest test: it is finite unless one of them is not,
    or some are so large (about 1e16) that it overflows.
    """
    return bool(np.isfinite(values.dot(values))) or bool(np.isfinite(values).all())
