"""What calibration observes on a user's clips: the range of each layer's input, and a few rows.

In terms of rows (`quant/products.py`) every layer is a matrix product, so that trying a candidate
range costs one small product.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedsim.errors import FedsimError
from fedsim.quant.accelerated import on_processor
from fedsim.quant.layers import Layer
from fedsim.quant.model import Batch, Quantizable, frame_axis
from fedsim.quant.products import at_places, gather_rows, patch_shape
from fedsim.quant.sample import Extremes, Sample, fetched, spread

ROWS = 256
"""Rows kept per layer, at most."""


@dataclass(frozen=True)
class LayerObservation:
    """What was observed of one layer.

    `low`, `high`: the exact extremes of its input. `rows`: float32 (R, G, K) for G groups of K
    inputs each (G = 1 except in grouped convolutions), or None. `fisher`: float32 (R, N), the
    squared gradient of the pseudo-label loss with respect to the output of each row, or None.
    """

    low: float
    high: float
    rows: torch.Tensor | None = None
    fisher: torch.Tensor | None = None


@dataclass(frozen=True)
class LayerObservations:
    """Layer name -> what was observed of it, and the bytes that this takes."""

    layers: dict[str, LayerObservation]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows and squared gradients."""
        tensors = [t for seen in self.layers.values() for t in (seen.rows, seen.fisher)]
        return sum(t.nbytes for t in tensors if t is not None)


def observe(
    model: Quantizable,
    batches: Iterable[Batch],
    *,
    rows: bool = True,
    fisher: bool = False,
    capacity: int = ROWS,
) -> dict[str, LayerObservation]:
    """Return layer name -> what one pass over `batches` shows of the layer's input.

    Embeddings have no input to quantize and are left out. With `fisher`, one backward pass per
    batch, of the loss against the model's own transcript, serves all layers; no weight receives a
    gradient. Convolutions are assumed to pad with zeros.

    Args:
        model: in full precision.
        batches: of the clips.
        rows: whether to keep rows of the inputs.
        fisher: whether to keep the squared gradients of the same rows.
        capacity: rows kept per layer, at most.

    Raises:
        FedsimError: for a layer that the pass never reaches, and for inputs that are not finite.
    """
    tracing = _frozen(model.module) if fisher else torch.inference_mode()
    with tracing, observing(model, rows=rows, fisher=fisher, capacity=capacity) as recorder:
        for batch in recorder.passing(batches):
            logits = model.forward(batch)
            if fisher:
                model.loss(batch, logits).backward()
                recorder.keep_gradients()
    return recorder.observations()


@contextmanager
def observing(
    model: Quantizable, *, rows: bool = True, fisher: bool = False, capacity: int = ROWS
) -> Iterator[Recorder]:
    """Observe the layers' inputs while the caller runs the model on the `passing` batches."""
    layers = [layer for layer in model.layers if layer.kind != "embedding"]
    views = {layer.name: _View(layer, capacity) for layer in layers}
    with _hooks(model, views, rows, fisher):
        yield Recorder(views)


class Recorder:
    """Records a forward pass; `observations` returns the result once the pass is over."""

    def __init__(self, views: dict[str, _View]) -> None:
        self._views = views

    def start(self, batch: Batch) -> None:
        """Record what the layers receive from now on, of this batch."""
        # Most layers share one tensor of frame counts, which is on the processor.
        distinct = {id(frames): frames for frames in batch.frames_in.values()}
        counts = {key: frames.tolist() for key, frames in distinct.items()}
        for name, view in self._views.items():
            view.start(batch, counts.get(id(batch.frames_in.get(name))))

    def stop(self) -> None:
        """Record nothing until the next batch starts."""
        for view in self._views.values():
            view.batch = None

    def passing(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches; run the model on each before asking for the next."""
        for batch in batches:
            self.start(batch)
            yield batch

    def keep_gradients(self) -> None:
        """Keep the gradients of the batch that has just been differentiated."""
        for view in self._views.values():
            view.keep_gradients()

    def observations(self) -> dict[str, LayerObservation]:
        """Return layer name -> what was observed.

        Raises `FedsimError` for a layer that received nothing, or values that are not finite.
        """
        views = self._views
        numbers = fetched([end for view in views.values() for end in view.extremes.ends])
        ends = dict(zip(views, zip(numbers[::2], numbers[1::2], strict=True), strict=True))
        missing = next((n for n, (low, high) in ends.items() if low > high), None)
        if missing is not None:
            raise FedsimError(
                f"layer {missing!r} received no audio: either it is not part of the forward pass "
                f"or there is no clip; add the layer to model.keep, or give at least one clip"
            )
        broken = next((n for n, of in ends.items() if not np.isfinite(of).all()), None)
        if broken is not None:
            low, high = ends[broken]
            raise FedsimError(
                f"layer {broken!r} has inputs from {low} to {high}: the model overflows on the"
                f" clips; check the clips' level and the checkpoint"
            )
        return {name: view.seen(*ends[name]) for name, view in views.items()}


class _View:
    """What is recorded of one layer during the pass."""

    def __init__(self, layer: Layer, capacity: int) -> None:
        self.layer, self.capacity = layer, capacity
        self.extremes = Extremes()
        self.inputs: Sample | None = None
        self.fisher: Sample | None = None
        self.batch: Batch | None = None

    def start(self, batch: Batch, counts: list[int] | None) -> None:
        self.batch = batch
        self.counts = counts  # frames of the input
        self.frames_out = batch.frames_out.get(self.layer.name)
        self.gradients: list[tuple[int, torch.Tensor]] = []

    def see_range(self, x: torch.Tensor) -> None:
        if self.batch is not None:
            self.extremes.add(self.batch.part(x), self.counts, frame_axis(self.layer.kind))

    def see_rows(
        self, module: nn.Module, x: torch.Tensor, out: torch.Tensor
    ) -> tuple[np.ndarray, int]:
        """Keep some input rows; return their places (clip, frame) in the output, int64 (m, 2), and
        how many frames there were."""
        axis = frame_axis(self.layer.kind)
        clips, length = out.shape[0], out.shape[axis] if out.ndim == 3 else 1
        counts = np.full(clips, length) if self.frames_out is None else self.frames_out.numpy()
        patch = patch_shape(module)
        if self.inputs is None:
            self.inputs = Sample(self.capacity, patch)
        total = int(counts.sum())
        index = spread(total, self.inputs.room_for(total))
        ends = np.cumsum(counts)
        clip = np.searchsorted(ends, index, side="right")
        places = np.stack([clip, index - (ends - counts)[clip]], axis=1)
        rows = gather_rows(module, x.detach(), places).reshape(len(places), *patch)
        self.inputs.add(_stored(rows.float()))
        return places, total

    def await_gradient(self, out: torch.Tensor, places: np.ndarray, total: int) -> None:
        """Have the backward pass record the squared gradient of `out` at `places`.

        Gradients of several calls of one module arrive in reverse order, and that of a call on
        which the loss does not depend never arrives: so each call has an array of its own, zero
        until then.
        """
        squares = torch.zeros(len(places), self.layer.shape[0], device=out.device)
        self.gradients.append((total, squares))
        conv = frame_axis(self.layer.kind) == 2

        def record(grad: torch.Tensor) -> None:
            if grad.ndim == 2:
                grad = grad[:, None]
            elif conv:
                grad = grad.transpose(1, 2)
            clip, frame = at_places(grad, places)
            squares.copy_(grad[clip, frame].float().square())

        out.register_hook(record)

    def keep_gradients(self) -> None:
        """Keep the gradients of a batch, beside the rows of the same frames."""
        for total, squares in self.gradients:
            if self.fisher is None:
                self.fisher = Sample(self.capacity, squares.shape[1:])
            self.fisher.room_for(total)
            self.fisher.add(_stored(squares))

    def seen(self, low: float, high: float) -> LayerObservation:
        rows = None if self.inputs is None else torch.as_tensor(self.inputs.values)
        fisher = None if self.fisher is None else torch.as_tensor(self.fisher.values)
        return LayerObservation(low, high, rows, fisher)


@contextmanager
def _hooks(model: Quantizable, views: dict[str, _View], rows: bool, fisher: bool) -> Iterator[None]:
    """Observe every layer while open; hooks never outlive an error."""

    def see(
        view: _View, module: nn.Module, x: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor | None:
        if view.batch is None:  # the pass is another client's
            return None
        places, total = view.see_rows(module, view.batch.part(x), view.batch.part(out))
        if fisher:
            if not out.requires_grad:
                out.requires_grad_()  # no weight requires a gradient: start the graph here
            view.await_gradient(out, places, total)
            return out.clone()  # the network may write into its copy without losing the gradient
        return None

    def before(view: _View):  # type: ignore[no-untyped-def]
        return lambda module, args: view.see_range(args[0].detach())

    def after(view: _View):  # type: ignore[no-untyped-def]
        return lambda module, args, out: see(view, module, args[0], out)

    handles = []
    for name, view in views.items():
        module = model.module.get_submodule(name)
        # The input is in the processor's cache before the layer is computed, not after.
        handles.append(module.register_forward_pre_hook(before(view)))
        if rows:
            handles.append(module.register_forward_hook(after(view)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Let no weight require a gradient while open."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)


def _stored(rows: torch.Tensor) -> np.ndarray | torch.Tensor:
    """Return rows as a `Sample` takes them."""
    return rows.numpy() if on_processor(rows) else rows
