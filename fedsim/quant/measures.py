"""The sensitivity measures: each turns what was observed of a layer's output into one number.

The paper's measure is the median of the output's magnitudes. The ablations replace it by other
statistics of the output, and by distances between a layer's output and its output with its own
weight rounded (`quant/distances.py`). No measure is negated: the layer with the largest value
always loses a bit first under `descending`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedsim.registry import Lazy, Registry

TINY = 1e-30
"""The smallest divisor of a ratio."""


@dataclass(frozen=True)
class Observed:
    """What was observed of one layer's output: a sample (n,) float32 and, if the measure needs
    them, the exact extremes and the change by a rounded weight.

    The sample holds magnitudes if the measure is `of_magnitudes`. The measure may reorder it. It is
    an array and the extremes are floats; for `Measure.on_gpu` they are tensors on the GPU.
    """

    sample: Any
    low: Any
    high: Any
    change: Any = None
    """The accumulator that the measure asked for (`quant/distances.py`)."""


@dataclass(frozen=True)
class Measure:
    """One way to rank layers by what was observed of their outputs."""

    value: Callable[[Observed], float]
    """f(observed) -> the sensitivity of one layer."""
    summary: str
    of_magnitudes: bool = False
    """Whether it reads |output| rather than the output."""
    needs_extremes: bool = False
    """Whether it needs the exact extremes, which cost a pass over every element."""
    change: Callable[..., Any] | None = None
    """f(kind, module, capacity) -> an accumulator of how a rounded weight changes the layer's
    output, at the cost of one more evaluation of each layer (`quant/distances.py`)."""
    on_gpu: Callable[..., Any] | None = None
    """f(observed) -> the sensitivity as a tensor without dimensions, where the output is on a GPU;
    it must not wait for the GPU. None: the sample is fetched, layer by layer, for `value`."""


MEASURES: Registry[Measure] = Registry("sensitivity")


def median(seen: Observed) -> float:
    """Median of |output| (the paper's choice)."""
    magnitudes, n = seen.sample, len(seen.sample)
    # Nonnegative floats are ordered as their bits are: comparing these takes a third of the time.
    # Partitioning at a single position is numpy's fast path.
    magnitudes.view(np.int32).partition(n // 2)
    upper = float(magnitudes[n // 2])
    return upper if n % 2 else (float(magnitudes[: n // 2].max()) + upper) / 2


def mean(seen: Observed) -> float:
    """Mean of |output|."""
    return float(seen.sample.mean(dtype=np.float64))


def maximum(seen: Observed) -> float:
    """Largest output (signed, exact)."""
    return seen.high


def absolute_maximum(seen: Observed) -> float:
    """Largest |output| (exact)."""
    return max(abs(seen.low), abs(seen.high))


def standard_deviation(seen: Observed) -> float:
    """Standard deviation of the output."""
    return float(seen.sample.std(dtype=np.float64))


def variance(seen: Observed) -> float:
    """Variance of the output."""
    return float(seen.sample.var(dtype=np.float64))


def normality(seen: Observed) -> float:
    """Distance of the output's distribution from a normal one (Lilliefors' statistic, 0 to 1).

    sup_x |F(x) - Phi((x - m) / s)|: F the empirical distribution of the sample, m and s its mean
    and standard deviation, Phi the standard normal distribution (H. W. Lilliefors, J. Am. Stat.
    Assoc. 62, 1967). 0 is normal. It depends on neither scale nor offset, and does not grow with
    the number of elements. For a constant output it is 1/2.
    """
    import torch  # scenarios are checked without it

    x = np.sort(seen.sample).astype(np.float64)
    z = (x - x.mean()) / max(x.std(), TINY)
    phi = torch.special.ndtr(torch.from_numpy(z)).numpy()
    steps = np.arange(len(x) + 1) / len(x)
    return float(max((steps[1:] - phi).max(), (phi - steps[:-1]).max()))


def l1(seen: Observed) -> float:
    """Mean |D|, D the change of the output when the weight has 4 bits.

    sum |D| / (F N) over F frames of N channels, D = Y_q - Y (`quant/distances.py`). Exact, as are
    l2, frobenius and spectral.
    """
    return float(seen.change.l1())


def l2(seen: Observed) -> float:
    """Mean norm of a frame of D, the change of the output when the weight has 4 bits.

    sum_t ||D_t||_2 / F, D_t the row of frame t.
    """
    return float(seen.change.l2())


def frobenius(seen: Observed) -> float:
    """Relative change of the output with a 4-bit weight: ||D||_F / ||Y||_F, over all frames."""
    return float(seen.change.frobenius())


def spectral(seen: Observed) -> float:
    """Relative change of the output with a 4-bit weight: ||D||_2 / ||Y||_2, over all frames.

    ||M||_2 is the largest singular value of the matrix (F, N), from its Gram matrix.
    """
    return float(seen.change.ratio())


def kullback_leibler(seen: Observed) -> float:
    """KL divergence (nats) between the output's histograms in full precision and with a 4-bit
    weight.

    KL(P || Q) = sum_i P_i ln(P_i / Q_i), P of Y and Q of Y_q: 64 bins over the exact range of Y,
    half a count added to each (`OutputPairs.divergence`). From a sample of at most `CAPACITY`
    elements; exact if there are no more than that.
    """
    return float(seen.change.divergence())


_SUMS = Lazy("fedsim.quant.distances:DistanceSums")

for _name, _measure in {
    "median": Measure(median, "Median of |output| (the paper's choice).", of_magnitudes=True),
    "mean": Measure(mean, "Mean of |output|.", of_magnitudes=True),
    "max": Measure(maximum, "Largest output (signed, exact).", needs_extremes=True),
    "abs-max": Measure(absolute_maximum, "Largest |output| (exact).", needs_extremes=True),
    "std": Measure(standard_deviation, "Standard deviation of the output."),
    "var": Measure(variance, "Variance of the output."),
    "normality": Measure(
        normality,
        "Distance of the output's distribution from a normal one (Lilliefors' statistic, 0 to 1).",
    ),
    "l1": Measure(
        l1, "Mean |D|, D the change of the output when the weight has 4 bits.", change=_SUMS
    ),
    "l2": Measure(
        l2,
        "Mean norm of a frame of D, the change of the output when the weight has 4 bits.",
        change=_SUMS,
    ),
    "frobenius": Measure(
        frobenius,
        "Relative change of the output with a 4-bit weight: ||D||_F / ||Y||_F, over all frames.",
        change=_SUMS,
    ),
    "spectral": Measure(
        spectral,
        "Relative change of the output with a 4-bit weight: ||D||_2 / ||Y||_2, over all frames.",
        change=Lazy("fedsim.quant.distances:DistanceSpectrum"),
    ),
    "kl": Measure(
        kullback_leibler,
        "KL divergence (nats) between the output's histograms in full precision and with a 4-bit"
        " weight.",
        change=Lazy("fedsim.quant.distances:OutputPairs"),
    ),
}.items():
    on_gpu = Lazy(f"fedsim.quant.accelerated:{_measure.value.__name__}")
    MEASURES.add(_name, replace(_measure, on_gpu=on_gpu))
