"""What a layer's sensitivity may be: a number from what was seen of its output.

The paper's is the median of its magnitudes. What replaces it in the ablations is a measure too:
other statistics of the output, and the distances between a layer's output and what it answers with
its own weight rounded (`quant/distances.py`). No measure is negated: the layer
with the largest value always loses a bit first under `descending`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.registry import Lazy, Registry

TINY = 1e-30
"""What a ratio is divided by at least."""


@dataclass(frozen=True)
class Observed:
    """What was seen of one layer's output: a sample (n,) float32, the exact extremes, and what a
    rounded weight changes; of the last two only what the measure needs.

    The sample of a measure `of_magnitudes` has no signs. It is the measure's own to reorder.
    """

    sample: np.ndarray
    low: float
    high: float
    change: Any = None
    """The accumulator that the measure asks for (`quant/distances.py`)."""


@dataclass(frozen=True)
class Measure:
    """One way to rank layers by what was seen of their outputs."""

    value: Callable[[Observed], float]
    """f(observed) -> the sensitivity of one layer."""
    summary: str
    of_magnitudes: bool = False
    """Whether it looks at |output|, whatever its sign."""
    needs_extremes: bool = False
    """Whether it needs the exact extremes, which cost a look at every element."""
    change: Callable[..., Any] | None = None
    """f(kind, module, capacity) -> what gathers the change of a layer's output by a rounded weight,
    at the cost of one more evaluation of each layer (`quant/distances.py`)."""


MEASURES: Registry[Measure] = Registry("sensitivity")


def median(seen: Observed) -> float:
    """Median of |output| (the paper's choice)."""
    size, n = seen.sample, len(seen.sample)
    # By their bits, which order numbers of one sign as their values do: a third of the time.
    # And at one place only: numpy's fast path.
    size.view(np.int32).partition(n // 2)
    upper = float(size[n // 2])
    return upper if n % 2 else (float(size[: n // 2].max()) + upper) / 2


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
    Assoc. 62, 1967). 0 is normal; it depends on neither scale nor offset, and unlike a test
    statistic does not grow with the number of elements. A constant output is 1/2 away.
    """
    import torch  # scenarios are checked without it

    x = np.sort(seen.sample).astype(np.float64)
    z = (x - x.mean()) / max(x.std(), TINY)
    phi = torch.special.ndtr(torch.from_numpy(z)).numpy()
    steps = np.arange(len(x) + 1) / len(x)
    return float(max((steps[1:] - phi).max(), (phi - steps[:-1]).max()))


def l1(seen: Observed) -> float:
    """Mean |D|, D the change of the output by a weight of 4 bits.

    sum |D| / (F N) over F frames of N channels, D = Y_q - Y (`quant/distances.py`). Exact, as are
    l2, frobenius and spectral.
    """
    return float(seen.change.l1())


def l2(seen: Observed) -> float:
    """Mean length of a frame of D, the change of the output by a weight of 4 bits.

    sum_t ||D_t||_2 / F, D_t the row of frame t.
    """
    return float(seen.change.l2())


def frobenius(seen: Observed) -> float:
    """Relative change of the output by a weight of 4 bits: ||D||_F / ||Y||_F, over all frames."""
    return float(seen.change.frobenius())


def spectral(seen: Observed) -> float:
    """Relative change of the output by a weight of 4 bits: ||D||_2 / ||Y||_2, over all frames.

    ||M||_2 is the largest singular value of the matrix (F, N), from its Gram matrix.
    """
    return float(seen.change.ratio())


def kullback_leibler(seen: Observed) -> float:
    """KL divergence (nats) of the output's histogram with a weight of 4 bits from that in full.

    KL(P || Q) = sum_i P_i ln(P_i / Q_i), P of Y and Q of Y_q: 64 bins over the exact range of Y,
    half a count added to each (`OutputPairs.divergence`). From a sample of at most `CAPACITY`
    elements; exact below.
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
    "l1": Measure(l1, "Mean |D|, D the change of the output by a weight of 4 bits.", change=_SUMS),
    "l2": Measure(
        l2,
        "Mean length of a frame of D, the change of the output by a weight of 4 bits.",
        change=_SUMS,
    ),
    "frobenius": Measure(
        frobenius,
        "Relative change of the output by a weight of 4 bits: ||D||_F / ||Y||_F, over all frames.",
        change=_SUMS,
    ),
    "spectral": Measure(
        spectral,
        "Relative change of the output by a weight of 4 bits: ||D||_2 / ||Y||_2, over all frames.",
        change=Lazy("fedsim.quant.distances:DistanceSpectrum"),
    ),
    "kl": Measure(
        kullback_leibler,
        "KL divergence (nats) of the output's histogram with a weight of 4 bits from that in full.",
        change=Lazy("fedsim.quant.distances:OutputPairs"),
    ),
}.items():
    MEASURES.add(_name, _measure)
