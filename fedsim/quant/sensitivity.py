"""How a model's layers respond to a user's clips: one number per layer, from one forward pass.

Algorithm 1, line 2: a_l = median over the user's clips of |output of layer l|. All layers are
observed in the same pass. A layer keeps a jittered, evenly spread sample of its output's elements
(one from each stretch of equal length), at most `CAPACITY` of them however much audio there is:
memory is flat and the cost small against the forward. With fewer elements than that the statistics
are exact.

What replaces the median in the ablations is a measure too: other statistics of that sample, and the
distances between a layer's output and what it answers with its own weight rounded
(`quant/distances.py`). None is turned round: whatever its meaning, the layer where a measure is
largest gives up its bit first under `descending`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedsim.errors import FedsimError
from fedsim.quant.distances import TINY, Gauge, Pairs, Spectrum, Sums
from fedsim.quant.layers import Layer
from fedsim.quant.model import Batch, Quantizable, frame_axis
from fedsim.quant.sample import Sample, masked_extremes, spread
from fedsim.registry import Registry

CAPACITY = 1 << 19
"""Elements that a layer keeps at most (float32: 2 MiB a layer)."""

QUANTILES = tuple(np.linspace(0, 1, 33).tolist())
"""Of a layer's output, where a study asks for its distribution."""

Measure = Callable[["Observed"], float]
MEASURES: Registry[Measure] = Registry("sensitivity")
"""name -> f(observed) -> the sensitivity of one layer."""


@dataclass(frozen=True)
class Observed:
    """What was seen of one layer's output: a sample (n,) float32, the exact extremes, and what a
    rounded weight changes; of the last two only what the measure needs."""

    sample: np.ndarray
    low: float
    high: float
    change: Gauge | None = None


@MEASURES.register("median")
def median(seen: Observed) -> float:
    """Median of |output| (the paper's choice)."""
    size, n = np.abs(seen.sample), len(seen.sample)
    # By their bits, which order numbers of one sign as their values do: a third of the time.
    # And at one place only: numpy's fast path.
    size.view(np.int32).partition(n // 2)
    upper = float(size[n // 2])
    return upper if n % 2 else (float(size[: n // 2].max()) + upper) / 2


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


@MEASURES.register("normality")
def normality(seen: Observed) -> float:
    """Distance of the output's distribution from a normal one (Lilliefors' statistic, 0 to 1).

    sup_x |F(x) - Phi((x - m) / s)|: F the empirical distribution of the sample, m and s its mean
    and standard deviation, Phi the standard normal distribution (H. W. Lilliefors, J. Am. Stat.
    Assoc. 62, 1967). 0 is normal; it depends on neither scale nor offset, and unlike a test
    statistic does not grow with the number of elements. A constant output is 1/2 away.
    """
    x = np.sort(seen.sample).astype(np.float64)
    z = (x - x.mean()) / max(x.std(), TINY)
    phi = torch.special.ndtr(torch.from_numpy(z)).numpy()
    steps = np.arange(len(x) + 1) / len(x)
    return float(max((steps[1:] - phi).max(), (phi - steps[:-1]).max()))


@MEASURES.register("l1")
def l1(seen: Observed) -> float:
    """Mean |D|, D the change of the output by a weight of 4 bits.

    sum |D| / (F N) over F frames of N channels, D = Y_q - Y (`quant/distances.py`). Exact, as are
    l2, frobenius and spectral.
    """
    assert isinstance(seen.change, Sums)
    return seen.change.l1()


@MEASURES.register("l2")
def l2(seen: Observed) -> float:
    """Mean length of a frame of D, the change of the output by a weight of 4 bits.

    sum_t ||D_t||_2 / F, D_t the row of frame t.
    """
    assert isinstance(seen.change, Sums)
    return seen.change.l2()


@MEASURES.register("frobenius")
def frobenius(seen: Observed) -> float:
    """Relative change of the output by a weight of 4 bits: ||D||_F / ||Y||_F, over all frames."""
    assert isinstance(seen.change, Sums)
    return seen.change.frobenius()


@MEASURES.register("spectral")
def spectral(seen: Observed) -> float:
    """Relative change of the output by a weight of 4 bits: ||D||_2 / ||Y||_2, over all frames.

    ||M||_2 is the largest singular value of the matrix (F, N), from its Gram matrix.
    """
    assert isinstance(seen.change, Spectrum)
    return seen.change.ratio()


@MEASURES.register("kl")
def kullback_leibler(seen: Observed) -> float:
    """KL divergence (nats) of the output's histogram with a weight of 4 bits from that in full.

    KL(P || Q) = sum_i P_i ln(P_i / Q_i), P of Y and Q of Y_q: 64 bins over the exact range of Y,
    half a count added to each (`Pairs.divergence`). From a sample of at most `CAPACITY` elements;
    exact below.
    """
    assert isinstance(seen.change, Pairs)
    return seen.change.divergence()


NEEDS_EXTREMES = {"max", "abs-max"}
"""Measures of the exact extremes, which cost a look at every element."""
NEEDS_CHANGE: dict[str, type[Gauge]] = {
    "l1": Sums,
    "l2": Sums,
    "frobenius": Sums,
    "spectral": Spectrum,
    "kl": Pairs,
}
"""Measures of what a rounded weight changes -> what gathers it, at the cost of one more evaluation
of each layer. Others need the sample alone."""


class _Watcher:
    """Forward hooks on every layer; a context manager, so hooks never outlive an error."""

    def __init__(self, model: Quantizable, capacity: int, measure: str) -> None:
        modules = dict(model.module.named_modules())
        self.layers = {modules[layer.name]: layer for layer in model.layers}
        self.samples = {layer.name: Sample(capacity) for layer in model.layers}
        self.extremes: dict[str, tuple[float, float]] = {}
        self.want_extremes = measure in NEEDS_EXTREMES
        self.changes: dict[str, Gauge] = {}
        if measure in NEEDS_CHANGE:
            gauge = NEEDS_CHANGE[measure]
            self.changes = {a.name: gauge(a.kind, m, capacity) for m, a in self.layers.items()}
        self.batch: Batch | None = None
        self.places: dict[tuple, torch.Tensor] = {}
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> _Watcher:
        self.handles = [m.register_forward_hook(self._see) for m in self.layers]
        if self.changes:
            hook = self._compare
            self.handles += [m.register_forward_hook(hook, with_kwargs=True) for m in self.layers]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self.handles:
            handle.remove()

    def start(self, batch: Batch) -> None:
        self.batch = batch
        self.places = {}

    def _frames(self, layer: Layer) -> torch.Tensor | None:
        assert self.batch is not None
        return self.batch.speech.get(layer.name, self.batch.frames_out.get(layer.name))

    def _compare(
        self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any], out: torch.Tensor
    ) -> None:
        layer = self.layers[module]
        self.changes[layer.name].see(args, kwargs, out, self._frames(layer))

    def _see(self, module: torch.nn.Module, args: tuple, out: torch.Tensor) -> None:
        layer = self.layers[module]
        frames = self._frames(layer)
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
        if keep == n:  # all of it: no places to look for
            sample.add(_speech(conv, out, frames))
            return
        flat = out.reshape(-1)
        key = (conv, tuple(out.shape), id(frames), keep)
        if key not in self.places:
            self.places[key] = torch.from_numpy(_places(conv, out.shape, frames, spread(n, keep)))
        sample.add(flat.index_select(0, self.places[key]).numpy())


def _speech(conv: bool, out: torch.Tensor, frames: torch.Tensor | None) -> np.ndarray:
    """Return the elements that are speech, clip by clip, (n,); a copy, for `out` may be reused."""
    values = out.numpy()
    if frames is None:
        return values.flatten()
    counts = enumerate(frames.tolist())
    clips = [values[b, :, :n] if conv else values[b, :n] for b, n in counts]
    kept, begin = np.empty(sum(clip.size for clip in clips), values.dtype), 0
    for clip in clips:
        kept[begin : begin + clip.size].reshape(clip.shape)[...] = clip
        begin += clip.size
    return kept


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


def _watch(model: Quantizable, batches: Iterable[Batch], capacity: int, measure: str) -> _Watcher:
    """Return what every layer kept of one forward pass; each has seen something."""
    with _Watcher(model, capacity, measure) as watcher:
        for batch in batches:
            watcher.start(batch)
            model.forward(batch)
    for name, kept in watcher.samples.items():
        if not len(kept.values):
            raise FedsimError(
                f"layer {name!r} saw no audio: it is not part of the forward pass; add it to "
                f"model.keep, or give at least one clip"
            )
    return watcher


@torch.inference_mode()
def quantiles(
    model: Quantizable, batches: Iterable[Batch], *, capacity: int = CAPACITY
) -> np.ndarray:
    """Return the distribution of each layer's output: its `QUANTILES`, float64 (L, Q).

    For histograms of a study (the paper's Fig. 2), in one forward pass as `sense`.
    """
    return _quantiles(model, _watch(model, batches, capacity, ""))


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
    return _reduce(model, _watch(model, batches, capacity, measure), reduce)


@torch.inference_mode()
def sense_and_quantiles(
    model: Quantizable, batches: Iterable[Batch], measure: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `sense` and `quantiles` return, by one forward pass."""
    reduce = MEASURES[measure]
    watcher = _watch(model, batches, CAPACITY, measure)
    return _reduce(model, watcher, reduce), _quantiles(model, watcher)


def _quantiles(model: Quantizable, watcher: _Watcher) -> np.ndarray:
    return np.stack([_spread(watcher.samples[layer.name].values) for layer in model.layers])


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


def _reduce(model: Quantizable, watcher: _Watcher, reduce: Measure) -> np.ndarray:
    values = []
    for layer in model.layers:
        kept = watcher.samples[layer.name]
        low, high = watcher.extremes.get(layer.name, (0.0, 0.0))
        # A median of the rest would look sound: one bad clip among good ones must not hide.
        if _finite(kept.values):
            value = reduce(Observed(kept.values, low, high, watcher.changes.get(layer.name)))
        else:
            value = float(kept.values[np.abs(kept.values).argmax()])
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
