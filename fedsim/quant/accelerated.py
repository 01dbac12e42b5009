"""Statistics on a GPU, of tensors that stay there: what numpy computes for the processor.

Nothing here waits for the GPU, so that a pass over the clips is not held up layer by layer: results
are tensors without dimensions, which are fetched together once the pass is over. Definitions are
those of `quant/measures.py`; sums are taken in another order, so that last digits differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fedsim.quant.measures import TINY, Observed
from fedsim.quant.quantiles import QUANTILES


def on_processor(x: torch.Tensor) -> bool:
    """Return whether numpy can look at a tensor."""
    return x.device.type == "cpu"


def wide(device: torch.device) -> torch.dtype:
    """Return the type in which long sums are taken: float64, which Apple's GPUs lack."""
    return torch.float32 if device.type == "mps" else torch.float64


def extremes(x: torch.Tensor, counts: Sequence[int] | None, axis: int) -> torch.Tensor:
    """Return the smallest and the largest element of `x` (B, ...), or NaN if one is NaN: (2,).

    Only the first `counts[b]` frames of clip b, along `axis`, count; None counts them all.
    """
    x = x.float()
    if not counts or min(counts) == x.shape[axis]:
        return torch.stack(torch.aminmax(x))
    frames = torch.arange(x.shape[axis], device=x.device)
    spoken = frames < torch.from_numpy(np.asarray(counts)).to(x.device)[:, None]
    spoken = spoken[:, None, :] if axis == 2 else spoken[..., None]
    low = torch.where(spoken, x, torch.inf).amin()
    return torch.stack([low, torch.where(spoken, x, -torch.inf).amax()])


def wider(ends: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the extremes of two streams together, NaN if one of them is NaN: (2,)."""
    low = torch.minimum(ends[0], others[0])
    return torch.stack([low, torch.maximum(ends[1], others[1])])


def unless_broken(sample: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return `value`, or the worst element of a sample that is not finite."""
    worst = sample.gather(0, sample.abs().argmax().reshape(1))[0]
    return torch.where(torch.isfinite(sample).all(), value, worst.to(value.dtype))


def median(seen: Observed) -> torch.Tensor:
    """Median of magnitudes."""
    ordered, n = seen.sample.sort().values, len(seen.sample)
    middle = ordered[(n - 1) // 2 : n // 2 + 1]  # one or two
    return middle.mean(dtype=wide(ordered.device))


def mean(seen: Observed) -> torch.Tensor:
    """Mean of magnitudes."""
    return seen.sample.mean(dtype=wide(seen.sample.device))


def maximum(seen: Observed) -> torch.Tensor:
    """Largest output."""
    return _tensor(seen.high)


def absolute_maximum(seen: Observed) -> torch.Tensor:
    """Largest magnitude."""
    return torch.maximum(_tensor(seen.low).abs(), _tensor(seen.high).abs())


def variance(seen: Observed) -> torch.Tensor:
    """Variance of the output."""
    return seen.sample.to(wide(seen.sample.device)).var(correction=0)


def standard_deviation(seen: Observed) -> torch.Tensor:
    """Standard deviation of the output."""
    return variance(seen).sqrt()


def normality(seen: Observed) -> torch.Tensor:
    """Lilliefors' statistic."""
    x = seen.sample.sort().values.to(wide(seen.sample.device))
    z = (x - x.mean()) / x.std(correction=0).clamp(min=TINY)
    phi = torch.special.ndtr(z)
    steps = torch.arange(len(x) + 1, device=x.device) / len(x)
    return torch.maximum((steps[1:] - phi).max(), (phi - steps[:-1]).max())


def l1(seen: Observed) -> torch.Tensor:
    """Mean |D|; this and the others are of `quant/distances.py`."""
    return seen.change.absolute / seen.change.elements


def l2(seen: Observed) -> torch.Tensor:
    """Mean norm of a frame of D."""
    return seen.change.lengths / seen.change.frames


def frobenius(seen: Observed) -> torch.Tensor:
    """||D|| / ||Y|| by Frobenius' norm."""
    return (seen.change.squares / seen.change.squares_of_y.clamp(min=TINY)).sqrt()


def spectral(seen: Observed) -> torch.Tensor:
    """||D|| / ||Y|| by the spectral norm."""
    of_y, of_d, finite = seen.change.largest()
    ratio = (of_d.clamp(min=0) / of_y.clamp(min=TINY)).sqrt()
    return torch.where(finite, ratio, torch.nan)


def kullback_leibler(seen: Observed) -> torch.Tensor:
    """KL divergence of histograms."""
    p, q = (_histogram(sample.values, seen.change) for sample in (seen.change.y, seen.change.y_q))
    return (p * (p / q).log()).sum()


def _histogram(values: torch.Tensor, pairs: Any) -> torch.Tensor:
    """Return the probabilities of `OutputPairs`' bins, NaN if anything is not finite."""
    bins, (low, high) = pairs.bins, pairs.extremes.ends
    broken = ~(torch.isfinite(high - low) & torch.isfinite(values.sum()))
    kind = wide(values.device)
    span = high.to(kind) - low.to(kind)
    at = (values.to(kind) - low) * ((bins - 1) / span.clamp(min=TINY))
    at = at.nan_to_num().clamp(0, bins - 1)
    left = at.long().clamp(max=bins - 2)
    right = at - left
    counts = at.new_zeros(bins).index_add_(0, left, 1 - right).index_add_(0, left + 1, right)
    share = (counts + 0.5) / (len(values) + 0.5 * bins)
    return torch.where(broken, torch.nan, share)


def around_quantiles(values: torch.Tensor) -> torch.Tensor:
    """Return the elements of `values` (n,) below and above each of the `QUANTILES`: (2, Q)."""
    last = len(values) - 1
    below = torch.tensor([int(q * last) for q in QUANTILES])
    places = torch.stack([below, (below + 1).clamp(max=last)]).to(values.device)
    return values.sort().values[places]


def _tensor(value: Any) -> torch.Tensor:
    assert isinstance(value, torch.Tensor)  # extremes of an output on a GPU
    return value
