"""Second moments of what layers receive: the mean of x x^T over the inputs x of each layer.

They say which errors of a weight change the layer's output, and how later weights can make them
good (`quant/rounding/compensated.py`). They are recorded during a forward pass, in float32; frames
that the model attends to count, silence included, and padding of a batch does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from fedsim.errors import FedsimError
from fedsim.quant.accelerated import wide
from fedsim.quant.layers import Layer
from fedsim.quant.model import Batch, Quantizable, frame_axis
from fedsim.quant.sample import fetched

MIN_ROWS = 32
"""A layer that received fewer inputs than this has no moments: they would fit noise."""
CHUNK_BYTES = 16 << 20
"""Bytes of unfolded inputs of a convolution that exist at a time."""
_PARTS = 4
"""A product x^T x is symmetric: of this many blocks of columns, only the lower triangle is
computed."""


class SecondMoments(Protocol):
    """Second moments of one layer's inputs, in memory or not. Layers that receive the same inputs
    share one such object."""

    @property
    def mean(self) -> np.ndarray:
        """Float32 (G, K, K), the mean of x x^T of each group; perhaps read or computed anew each
        time it is asked for."""

    @property
    def rows(self) -> int:
        """Inputs on which the mean rests."""

    @property
    def nbytes(self) -> int:
        """Bytes of the mean."""


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """Second moments in memory; see `SecondMoments`."""

    mean: np.ndarray
    rows: int

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        return self.mean.nbytes


@dataclass(frozen=True, eq=False)
class Moments:
    """Layer name -> second moments, and the bytes that they take."""

    layers: dict[str, LayerMoments]

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices; layers that share one count once."""
        return sum({id(one.mean): one.nbytes for one in self.layers.values()}.values())


def usable(moments: Mapping[str, SecondMoments], layer: Layer) -> SecondMoments | None:
    """Return the moments of a layer; None if it saw too little to have any."""
    found = moments.get(layer.name)
    return None if found is None or found.rows < MIN_ROWS else found


def moment_shapes(model: Quantizable) -> dict[str, tuple[int, ...]]:
    """Return layer name -> shape (G, K, K) of its moments, for each layer that may have some."""
    modules = dict(model.module.named_modules())
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in model.layers:
        if layer.kind != "embedding":
            module = modules[layer.name]
            groups = module.groups if isinstance(module, nn.Conv1d) else 1
            inputs = layer.n_weights // layer.channels
            shapes[layer.name] = (groups, inputs, inputs)
    return shapes


def second_moments(model: Quantizable, batches: Iterable[Batch]) -> dict[str, LayerMoments]:
    """Return layer name -> second moments, from one forward pass over `batches`.

    Embeddings, which look rows up, have none. Raises `FedsimError` for inputs that are not finite.
    """
    with torch.inference_mode(), recording(model) as recorder:
        for batch in recorder.passing(batches):
            model.forward(batch)
    return recorder.moments()


@contextmanager
def recording(model: Quantizable) -> Iterator[MomentRecorder]:
    """Record while the caller runs the model on the `passing` batches."""
    recorder = MomentRecorder(model)
    try:
        yield recorder
    finally:
        recorder.close()


class MomentRecorder:
    """Records a forward pass; `moments` returns the result once the pass is over.

    Layers that receive the very same tensor (query, key and value of an attention) share one sum,
    unless one of them is called with another one besides.
    """

    def __init__(self, model: Quantizable) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._rows: dict[str, int] = {}
        self._twins: dict[str, str] = {}
        self._batch: Batch | None = None
        self._called: set[str] = set()  # with this batch
        self._last: tuple[torch.Tensor, object, str] | None = None
        modules = dict(model.module.named_modules())
        self._handles = [
            modules[layer.name].register_forward_pre_hook(self._hook(layer))
            for layer in model.layers
            if layer.kind != "embedding"
        ]

    def close(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()

    def start(self, batch: Batch) -> None:
        """Record what the layers receive from now on, of this batch."""
        self._batch, self._last, self._called = batch, None, set()

    def stop(self) -> None:
        """Record nothing until the next batch starts."""
        self._batch = self._last = None

    def passing(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches; run the model on each before asking for the next."""
        for batch in batches:
            self.start(batch)
            yield batch
            self.stop()

    @torch.inference_mode()
    def moments(self) -> dict[str, LayerMoments]:
        """Return layer name -> moments, once; `FedsimError` for inputs that are not finite."""
        found: dict[str, LayerMoments] = {}
        for name, total in self.means().items():
            found[name] = LayerMoments(total.cpu().numpy(), self._rows[name])
        for name, source in self._twins.items():
            found[name] = found[source]
        return found

    @torch.inference_mode()
    def means(self) -> dict[str, torch.Tensor]:
        """Return the mean of x x^T of the layers that have sums of their own, (G, K, K), where the
        model is; once. Raises as `moments` does."""
        sums = {name: _mirrored(total) for name, total in self._sums.items()}
        self._sums = {}
        totals = fetched([total.sum(dtype=wide(total.device)) for total in sums.values()])
        for name, total in zip(sums, totals, strict=True):
            if not math.isfinite(total):
                raise FedsimError(
                    f"layer {name!r} has inputs that are not finite, or too large to be squared: "
                    f"the model overflows on the clips; check the clips' level and the checkpoint"
                )
        return {name: total.div_(max(self._rows[name], 1)) for name, total in sums.items()}

    def _hook(self, layer: Layer):  # type: ignore[no-untyped-def]
        return lambda module, args: self._see(layer, module, args[0].detach())

    def _see(self, layer: Layer, module: nn.Module, x: torch.Tensor) -> None:
        if self._batch is None:  # the caller runs the model for something else
            return
        x = self._batch.part(x)
        counts = self._batch.frames_in.get(layer.name)
        if isinstance(module, nn.Linear):
            if layer.name in self._called:
                self._separate(layer.name)
            self._called.add(layer.name)
            if self._is_twin(layer.name, x, counts):
                return
            self._last = x, counts, layer.name
            self._add(layer.name, _linear_rows(x, counts)[None])
            return
        assert isinstance(module, nn.Conv1d)
        for rows in unfolded(module, x, counts, frame_axis(layer.kind)):
            self._add(layer.name, rows)

    def _is_twin(self, name: str, x: torch.Tensor, counts: object) -> bool:
        """Return whether the layer called before this one received the same rows."""
        if name in self._twins:
            return True
        if self._last is None or name in self._sums:
            return False
        last, last_counts, source = self._last
        place = (x.data_ptr(), x.shape, x.stride())
        same = last is x or (last.data_ptr(), last.shape, last.stride()) == place
        # Within one module (an attention): elsewhere the tensor may have been written into since.
        if same and last_counts is counts and _parent(source) == _parent(name):
            self._twins[name] = source
        return name in self._twins

    def _separate(self, name: str) -> None:
        """Give a layer that is called again, or its twins, sums of their own: they may differ."""
        twins = [name] if name in self._twins else [t for t, s in self._twins.items() if s == name]
        for twin in twins:
            source = self._twins.pop(twin)
            self._sums[twin] = self._sums[source].clone()
            self._rows[twin] = self._rows[source]

    def _add(self, name: str, rows: torch.Tensor) -> None:
        """Add x^T x of `rows` (G, n, K); only blocks on and below the diagonal are computed."""
        groups, n, k = rows.shape
        rows = rows.float()
        total = self._sums.get(name)
        if total is None:
            total = self._sums[name] = rows.new_zeros(groups, k, k)
            self._rows[name] = 0
        self._rows[name] += n
        width = -(-k // _PARTS)
        for g in range(groups):
            for start in range(0, k, width):
                stop = min(k, start + width)
                total[g, start:stop, :stop].addmm_(rows[g, :, start:stop].T, rows[g, :, :stop])


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _mirrored(total: torch.Tensor) -> torch.Tensor:
    """Make matrices (G, K, K), of which the lower triangles are given, symmetric in place."""
    below = total.tril(-1)
    return total.tril_().add_(below.transpose(1, 2))


def _linear_rows(x: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
    """Return the input rows (n, K) that count."""
    frames = None if counts is None else counts.tolist()
    if frames is None or x.ndim != 3 or min(frames) == x.shape[1]:
        return x.reshape(-1, x.shape[-1])
    return torch.cat([clip[:n] for clip, n in zip(x, frames, strict=True)])


def unfolded(
    module: nn.Conv1d,
    x: torch.Tensor,
    counts: torch.Tensor | None,
    axis: int,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[torch.Tensor]:
    """Yield the rows (G, n, K) that a convolution multiplies with, `chunk_bytes` of them at a time.

    `x` is (B, C, T), of which the first `counts[b]` frames of clip b count. K is ordered as the
    weight is: inputs of a group, then places of the kernel. Frames beyond the clip are zeros, with
    which the layer pads.
    """
    (k,), (s,), (d,) = module.kernel_size, module.stride, module.dilation
    if isinstance(module.padding, str):
        total = d * (k - 1) if module.padding == "same" else 0
        before, after = total // 2, total - total // 2
    else:
        before = after = module.padding[0]
    groups, per_group = module.groups, x.shape[1] // module.groups
    frames = [x.shape[axis]] * len(x) if counts is None else counts.tolist()
    step = max(1, chunk_bytes // (4 * x.shape[1] * k))
    for clip, n in zip(x, frames, strict=True):
        padded = torch.nn.functional.pad(clip[:, : max(n, 0)], (before, after))
        if padded.shape[1] <= d * (k - 1):  # too short for one window, beside longer clips
            continue
        windows = padded.unfold(1, d * (k - 1) + 1, s)[:, :, ::d]  # (C, frames, k)
        for start in range(0, windows.shape[1], step):
            part = windows[:, start : start + step].reshape(groups, per_group, -1, k)
            yield part.transpose(1, 2).reshape(groups, part.shape[2], per_group * k)
