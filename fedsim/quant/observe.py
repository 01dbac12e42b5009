"""What calibration observes on a user's clips: the range of each layer's input, and a few rows.

A *row* is what one output frame is computed from: the input vector of a linear layer, the patch of
a convolution. In terms of rows every layer is a matrix product, so that trying a candidate range
costs one small product.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedsim.errors import FedsimError
from fedsim.quant.layers import Layer
from fedsim.quant.model import Batch, Quantizable, frame_axis
from fedsim.quant.sample import Sample, masked_extremes, spread

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

    def passing(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches; run the model on each before asking for the next."""
        for batch in batches:
            # Most layers share one tensor of frame counts.
            distinct = {id(frames): frames for frames in batch.frames_in.values()}
            counts = {key: frames.tolist() for key, frames in distinct.items()}
            for name, view in self._views.items():
                view.start(batch, counts.get(id(batch.frames_in.get(name))))
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
        missing = next((n for n, v in views.items() if v.low > v.high), None)
        if missing is not None:
            raise FedsimError(
                f"layer {missing!r} received no audio: either it is not part of the forward pass "
                f"or there is no clip; add the layer to model.keep, or give at least one clip"
            )
        broken = next((n for n, v in views.items() if not np.isfinite([v.low, v.high]).all()), None)
        if broken is not None:
            raise FedsimError(
                f"layer {broken!r} has inputs from {views[broken].low} to {views[broken].high}: "
                f"the model overflows on the clips; check the clips' level and the checkpoint"
            )
        return {name: view.seen() for name, view in views.items()}


class _View:
    """What is recorded of one layer during the pass."""

    def __init__(self, layer: Layer, capacity: int) -> None:
        self.layer, self.capacity = layer, capacity
        self.low, self.high = np.inf, -np.inf
        self.inputs: Sample | None = None
        self.fisher: Sample | None = None

    def start(self, batch: Batch, counts: list[int] | None) -> None:
        self.counts = counts  # frames of the input
        self.frames_out = batch.frames_out.get(self.layer.name)
        self.gradients: list[tuple[int, np.ndarray]] = []

    def see_range(self, x: torch.Tensor) -> None:
        low, high = masked_extremes(x, self.counts, frame_axis(self.layer.kind))
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)  # keep NaN

    def see_rows(
        self, module: nn.Module, x: torch.Tensor, out: torch.Tensor
    ) -> tuple[np.ndarray, int]:
        """Keep some input rows; return their places (clip, frame) in the output, int64 (m, 2), and
        how many frames there were."""
        axis = frame_axis(self.layer.kind)
        clips, length = out.shape[0], out.shape[axis] if out.ndim == 3 else 1
        counts = np.full(clips, length) if self.frames_out is None else self.frames_out.numpy()
        patch = _patch_shape(module)
        if self.inputs is None:
            self.inputs = Sample(self.capacity, patch)
        total = int(counts.sum())
        index = spread(total, self.inputs.room_for(total))
        ends = np.cumsum(counts)
        clip = np.searchsorted(ends, index, side="right")
        places = np.stack([clip, index - (ends - counts)[clip]], axis=1)
        self.inputs.add(_gather(module, x.detach(), places).reshape(len(places), *patch).numpy())
        return places, total

    def await_gradient(self, out: torch.Tensor, places: np.ndarray, total: int) -> None:
        """Have the backward pass record the squared gradient of `out` at `places`.

        Gradients of several calls of one module arrive in reverse order, and that of a call on
        which the loss does not depend never arrives: so each call has an array of its own, zero
        until then.
        """
        squares = np.zeros((len(places), self.layer.shape[0]), np.float32)
        self.gradients.append((total, squares))
        conv = frame_axis(self.layer.kind) == 2

        def record(grad: torch.Tensor) -> None:
            if grad.ndim == 2:
                grad = grad[:, None]
            elif conv:
                grad = grad.transpose(1, 2)
            squares[:] = grad[places[:, 0], places[:, 1]].square().numpy()

        out.register_hook(record)

    def keep_gradients(self) -> None:
        """Keep the gradients of a batch, beside the rows of the same frames."""
        for total, squares in self.gradients:
            if self.fisher is None:
                self.fisher = Sample(self.capacity, squares.shape[1:])
            self.fisher.room_for(total)
            self.fisher.add(squares)

    def seen(self) -> LayerObservation:
        rows = None if self.inputs is None else torch.from_numpy(self.inputs.values)
        fisher = None if self.fisher is None else torch.from_numpy(self.fisher.values)
        return LayerObservation(float(self.low), float(self.high), rows, fisher)


@contextmanager
def _hooks(model: Quantizable, views: dict[str, _View], rows: bool, fisher: bool) -> Iterator[None]:
    """Observe every layer while open; hooks never outlive an error."""

    def see(
        view: _View, module: nn.Module, x: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor | None:
        places, total = view.see_rows(module, x, out)
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


def _patch_shape(module: nn.Module) -> tuple[int, int]:
    """Return (groups, inputs per group) of a layer in its form as a matrix product."""
    if isinstance(module, nn.Conv1d):
        return module.groups, module.in_channels // module.groups * module.kernel_size[0]
    assert isinstance(module, nn.Linear)
    return 1, module.in_features


def _gather(module: nn.Module, x: torch.Tensor, places: np.ndarray) -> torch.Tensor:
    """Return the input rows behind the output frames `places` (m, 2) = (clip, frame)."""
    clip, frame = torch.from_numpy(places[:, 0]), torch.from_numpy(places[:, 1])
    if not isinstance(module, nn.Conv1d):
        return x[clip, frame] if x.ndim == 3 else x[clip]
    (k,), (s,), (d,) = module.kernel_size, module.stride, module.dilation
    if isinstance(module.padding, str):
        before = d * (k - 1) // 2 if module.padding == "same" else 0
    else:
        (before,) = module.padding
    offsets = torch.arange(k) * d - before
    at = frame[:, None] * s + offsets  # (m, k); outside the clip, the layer pads with zeros
    inside = (at >= 0) & (at < x.shape[2])
    patch = x[clip[:, None], :, at.clamp(0, x.shape[2] - 1)]  # (m, k, C)
    return (patch * inside[..., None]).transpose(1, 2)  # (m, C, k): the layout of a weight


def as_product(layer: Layer, groups: int, weight: torch.Tensor) -> torch.Tensor:
    """Return a layer's weight as (G, N / G, K), ready to be multiplied with rows (R, G, K)."""
    return weight.reshape(groups, layer.shape[0] // groups, -1)


def outputs(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the layer's outputs (R, N) for rows (R, G, K) and a weight (G, N / G, K)."""
    if rows.shape[1] == 1:
        return F.linear(rows[:, 0], weight[0], bias)
    out = torch.bmm(rows.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)
    out = out.reshape(len(rows), -1)
    return out if bias is None else out + bias
