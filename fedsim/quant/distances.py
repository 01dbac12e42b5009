"""How a layer's output changes when its own weight is rounded, recorded during the forward pass.

Y (F, N) is a layer's output at the F frames that count; Y_q is its output for the very same input
when its weight is rounded to `BITS` bits, with one scale per output channel; D = Y_q - Y. Biases,
activations and all other layers stay in full precision, so Y_q costs one more evaluation of the
layer, in the same pass as Y. A rounded weight exists only during one call of its layer.

Each class here accumulates, for one layer, what one kind of measure needs. Memory does not grow
with the audio. Each clip is handled separately; sums over frames are in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedsim.quant.accelerated import on_processor, wide
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.linear import OneDnnLinear
from fedsim.quant.measures import TINY
from fedsim.quant.model import frame_axis
from fedsim.quant.on_demand import weight_of
from fedsim.quant.rounding import on_gpu
from fedsim.quant.rounding.independent import round_weight
from fedsim.quant.rounding.task import rounds_there
from fedsim.quant.sample import Extremes, Sample, spread

BITS = 4
"""Bit depth to which a layer's weight is rounded: a probe, the same for every budget."""
FORMAT = WeightFormat("per_channel")
BINS = 64
"""Number of bins of the histograms that `OutputPairs.divergence` compares."""


def rounded_weight(module: nn.Module) -> torch.Tensor:
    """Return the weight of `module`, rounded as for Y_q."""
    weight = weight_of(module)
    rounded = on_gpu.round_weight if rounds_there(weight) else round_weight
    return rounded(weight, BITS, FORMAT).to(weight.dtype)


def rounded_output(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    """Return Y_q: the output of `module` with its weight rounded; its hooks are not called."""
    # Python finds an attribute of the instance before a parameter or buffer of the same name.
    vars(module)["weight"] = rounded_weight(module)
    try:
        return module.forward(*args, **kwargs)
    finally:
        del vars(module)["weight"]


def clip_rows(kind: str, x: torch.Tensor, frames: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """Yield the frames that count (n, channels) of each clip; an `x` without a frame axis is one
    clip."""
    if x.ndim != 3:
        yield x.reshape(-1, x.shape[-1])
        return
    if frame_axis(kind) == 2:
        x = x.transpose(1, 2)
    counts = [x.shape[1]] * len(x) if frames is None else frames.tolist()
    for clip, n in zip(x, counts, strict=True):
        if n:
            yield clip[:n]


class OutputDistance:
    """Accumulates, for one layer, what one kind of measure needs."""

    def __init__(self, kind: str, module: nn.Module, capacity: int) -> None:
        self.kind, self.module, self.capacity = kind, module, capacity

    def see(
        self, args: tuple, kwargs: dict[str, Any], out: torch.Tensor, frames: torch.Tensor | None
    ) -> None:
        """Add one call of the layer; the first `frames[b]` frames of clip b count (None: all)."""
        rounded = rounded_output(self.module, args, kwargs)
        both = zip(
            clip_rows(self.kind, out, frames), clip_rows(self.kind, rounded, frames), strict=True
        )
        for y, y_q in both:
            self.add(y, y_q)

    def add(self, y: torch.Tensor, y_q: torch.Tensor) -> None:
        """Add the frames (n, N) of one clip."""
        raise NotImplementedError


class DistanceSums(OutputDistance):
    """Sums over all elements and frames: exact."""

    def __init__(self, kind: str, module: nn.Module, capacity: int) -> None:
        super().__init__(kind, module, capacity)
        self.elements = self.frames = 0
        # On the processor floats, on a GPU tensors without dimensions.
        self.absolute: Any = 0.0
        self.lengths: Any = 0.0
        self.squares: Any = 0.0
        self.squares_of_y: Any = 0.0

    def add(self, y: torch.Tensor, y_q: torch.Tensor) -> None:
        """Add the frames (n, N) of one clip."""
        number: Callable[[torch.Tensor], Any] = float if on_processor(y) else torch.clone
        kind = wide(y.device)
        y, y_q = y.float(), y_q.float()
        d = y_q - y
        lengths = torch.linalg.vector_norm(d, dim=1).to(kind)
        self.elements += d.numel()
        self.frames += len(d)
        self.absolute += number(d.abs().sum(dtype=kind))
        self.lengths += number(lengths.sum())
        self.squares += number(lengths.square().sum())
        self.squares_of_y += number(torch.linalg.vector_norm(y, dim=1).to(kind).square().sum())

    def l1(self) -> float:
        """Return sum |D| / (F N)."""
        return self.absolute / self.elements

    def l2(self) -> float:
        """Return sum_t ||D_t||_2 / F."""
        return self.lengths / self.frames

    def frobenius(self) -> float:
        """Return ||D||_F / ||Y||_F."""
        return (self.squares / max(self.squares_of_y, TINY)) ** 0.5


class DistanceSpectrum(OutputDistance):
    """Gram matrices, which give the largest singular values of D and Y exactly.

    Either D^T D and Y^T Y (N x N), or, for a linear layer where that is smaller, X^T X of its input
    X (F, K), with a one appended for the bias. As D = X (W_q - W)^T and Y = X W^T, one matrix
    serves both, and Y_q need not be computed: a vocabulary head of 51,865 outputs and 512 inputs
    keeps 512 x 512 numbers (float32). A linear layer keeps at most about twice the bytes of its
    weight; a convolution or an embedding keeps 8 N^2 bytes.
    """

    def __init__(self, kind: str, module: nn.Module, capacity: int) -> None:
        super().__init__(kind, module, capacity)
        self.grams: list[torch.Tensor] = []
        self.from_input = False
        if isinstance(module, nn.Linear) and type(module) in (nn.Linear, OneDnnLinear):
            width = module.in_features + (module.bias is not None)
            self.from_input = width**2 <= 2 * module.out_features**2

    def see(
        self, args: tuple, kwargs: dict[str, Any], out: torch.Tensor, frames: torch.Tensor | None
    ) -> None:
        """Add one call of the layer; the first `frames[b]` frames of clip b count (None: all)."""
        if not self.from_input:
            super().see(args, kwargs, out, frames)
            return
        x = args[0] if args else kwargs["input"]
        for rows in clip_rows(self.kind, x, frames):
            self._accumulate(rows if self.module.bias is None else F.pad(rows, (0, 1), value=1.0))

    def add(self, y: torch.Tensor, y_q: torch.Tensor) -> None:
        """Add the frames (n, N) of one clip."""
        self._accumulate(y, y_q - y)

    def _accumulate(self, *matrices: torch.Tensor) -> None:
        matrices = tuple(m.float() for m in matrices)
        if not self.grams:
            self.grams = [m.new_zeros(m.shape[1], m.shape[1]) for m in matrices]
        for gram, m in zip(self.grams, matrices, strict=True):
            gram.addmm_(m.T, m)

    def ratio(self) -> float:
        """Return s(D) / s(Y), s the largest singular value."""
        if not all(bool(torch.isfinite(gram.sum())) for gram in self.grams):
            return float("nan")
        top_y, top_d = (max(float(top), 0.0) for top in self._tops(self.grams))
        return (top_d / max(top_y, TINY)) ** 0.5

    def largest(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the squares of s(Y) and s(D), and whether everything is finite: tensors without
        dimensions, where the layer is."""
        finite = torch.stack([torch.isfinite(gram.sum()) for gram in self.grams]).all()
        device = finite.device
        # What is not finite has no eigenvalues; Apple's GPUs compute none.
        grams = [gram.nan_to_num(posinf=0.0, neginf=0.0) for gram in self.grams]
        home = torch.device("cpu") if device.type == "mps" else device
        tops = self._tops([gram.to(home) for gram in grams])
        of_y, of_d = (top.float().to(device) for top in tops)
        return of_y, of_d, finite

    def _tops(self, grams: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the largest eigenvalues of Y^T Y and D^T D, float64."""
        if self.from_input:
            device = grams[0].device
            bias, weight = self.module.bias, weight_of(self.module).float()
            d = (rounded_weight(self.module).float() - weight).to(device)
            y = weight.to(device)
            if isinstance(bias, torch.Tensor):
                bias = bias.to(device, y.dtype)
                d, y = F.pad(d, (0, 1)), torch.cat([y, bias[:, None]], dim=1)
            values, vectors = torch.linalg.eigh(grams[0].double())
            root = vectors * values.clamp_min(0).sqrt()  # root root^T = X^T X
            of_y, of_d = (root.T @ (m.T @ m).double() @ root for m in (y, d))
        else:
            of_y, of_d = (gram.double() for gram in grams)
        top_y, top_d = (torch.linalg.eigvalsh(m)[-1] for m in (of_y, of_d))
        return top_y, top_d


class OutputPairs(OutputDistance):
    """An evenly spread sample of elements of Y, the elements of Y_q at the same positions, and the
    exact extremes of Y."""

    def __init__(self, kind: str, module: nn.Module, capacity: int) -> None:
        super().__init__(kind, module, capacity)
        self.y, self.y_q = Sample(capacity), Sample(capacity)
        self.extremes, self.bins = Extremes(), BINS

    def add(self, y: torch.Tensor, y_q: torch.Tensor) -> None:
        """Add the frames (n, N) of one clip."""
        y, y_q = y.float(), y_q.float()
        self.extremes.add(y[None], None, 1)
        for sample, values in ((self.y, y), (self.y_q, y_q)):
            keep = sample.room_for(values.numel())
            places = torch.from_numpy(spread(values.numel(), keep)).to(values.device)
            kept = values.reshape(-1).index_select(0, places)
            sample.add(kept.numpy() if on_processor(kept) else kept)

    def divergence(self) -> float:
        """Return KL(P || Q) in nats, P and Q the histograms of Y and Y_q.

        `BINS` centres are evenly spaced from the smallest to the largest element of Y; elements of
        Y_q outside this range count at the nearest end. Each element is split between its two
        neighbouring centres in proportion to its distance from them, so that a change in the last
        digit never moves it from bin to bin. A bin that counts c of n elements has the probability
        (c + 1/2) / (n + BINS/2). Where P and Q are alike, chance alone makes them diverge by about
        10/n to 25/n.
        """
        p, q = self._histogram(self.y.values), self._histogram(self.y_q.values)
        return float((p * np.log(p / q)).sum())

    def _histogram(self, values: np.ndarray) -> np.ndarray:
        low, high = self.extremes.ends
        span = high - low
        if not (np.isfinite(span) and np.isfinite(values.sum())):
            return np.full(BINS, np.nan)
        at = (values.astype(np.float64) - low) * ((BINS - 1) / max(span, TINY))
        np.clip(at, 0, BINS - 1, out=at)
        left = np.minimum(at.astype(np.int64), BINS - 2)
        right_share = at - left
        counts = np.bincount(left, 1 - right_share, BINS)
        counts += np.bincount(left + 1, right_share, BINS)
        return (counts + 0.5) / (len(values) + 0.5 * BINS)
