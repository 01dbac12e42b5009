"""What a layer's sensitivity may be: a number from what was seen of its output.

The paper's is the median of its magnitudes. What replaces it in the ablations is a measure too:
other statistics of the output, and the distances between a layer's output and what it answers with
its own weight rounded (`quant/distances.py`). None is turned round: whatever its meaning, the layer
where a measure is largest gives up its bit first under `descending`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fedsim.quant.distances import TINY, Gauge, Pairs, Spectrum, Sums
from fedsim.registry import Registry

Measure = Callable[["Observed"], float]
MEASURES: Registry[Measure] = Registry("sensitivity")
"""name -> f(observed) -> the sensitivity of one layer."""


@dataclass(frozen=True)
class Observed:
    """What was seen of one layer's output: a sample (n,) float32, the exact extremes, and what a
    rounded weight changes; of the last two only what the measure needs.

    The sample of a measure `OF_MAGNITUDES` has no signs. It is the measure's own to reorder.
    """

    sample: np.ndarray
    low: float
    high: float
    change: Gauge | None = None


@MEASURES.register("median")
def median(seen: Observed) -> float:
    """Median of |output| (the paper's choice)."""
    size, n = seen.sample, len(seen.sample)
    # By their bits, which order numbers of one sign as their values do: a third of the time.
    # And at one place only: numpy's fast path.
    size.view(np.int32).partition(n // 2)
    upper = float(size[n // 2])
    return upper if n % 2 else (float(size[: n // 2].max()) + upper) / 2


@MEASURES.register("mean")
def mean(seen: Observed) -> float:
    """Mean of |output|."""
    return float(seen.sample.mean(dtype=np.float64))


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


OF_MAGNITUDES = {"median", "mean"}
"""Measures of |output|, whatever its sign."""
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
