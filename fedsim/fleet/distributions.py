"""What a quantity of a device is drawn from, and how the draws of several depend on each other.

A distribution is asked for its value at a standard normal number z, that is for its quantile at
the probability of a standard normal number below z. Where these numbers are correlated, so are the
quantities: a Gaussian copula (Nelsen 2006, "An Introduction to Copulas", section 2.3).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

from fedsim.errors import FedsimError

QUANTITIES = ("budget_mb", "memory_mb", "speed", "link", "battery", "bit_depths")
"""What may vary within a class: two sizes in MB, three factors, and the runtime's bit depths."""
MIN_QUANTITY, MAX_QUANTITY = 1e-6, 1e6
"""Bounds of a size in MB and of a factor; what is drawn beyond them is set to the nearer one."""
_MAX_EXPONENT = 100.0  # e to it is beyond every bound
_MIN_EIGENVALUE = -1e-9  # rounding of a singular matrix


class Distribution(Protocol):
    """What a quantity is drawn from."""

    def at(self, z: float) -> Any:
        """Return the quantity's value at a standard normal number."""


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value for every device."""

    value: Any
    """A number within the bounds, or bit depths in order."""

    def at(self, z: float) -> Any:
        """Return the value."""
        return self.value


@dataclass(frozen=True, slots=True)
class Uniform:
    """Any number between two, both within the bounds, with the same density."""

    low: float
    high: float
    """At least `low`."""

    def at(self, z: float) -> float:
        """Return the quantile."""
        return _within_bounds(self.low + (self.high - self.low) * _probability_below(z))


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A number whose logarithm is normally distributed."""

    median: float
    spread: float
    """Standard deviation of the natural logarithm, 0 or more."""

    def at(self, z: float) -> float:
        """Return the quantile."""
        return _within_bounds(self.median * math.exp(min(self.spread * z, _MAX_EXPONENT)))


@dataclass(frozen=True, slots=True)
class TruncatedNormal:
    """A normal distribution of which only what is above zero is left."""

    mean: float
    """Of the whole distribution, above zero."""
    std: float
    """Of the whole distribution, 0 or more."""

    def at(self, z: float) -> float:
        """Return the quantile."""
        if self.std == 0:
            return self.mean
        from scipy.special import log_ndtr, ndtri_exp

        # From above, in logarithms: the tail that is cut off is below, and none of this rounds to 1
        rest = float(log_ndtr(-z) + log_ndtr(self.mean / self.std))
        return _within_bounds(self.mean - self.std * float(ndtri_exp(rest)))


@dataclass(frozen=True, slots=True)
class Choices:
    """One of several values, in proportion to their weights."""

    values: tuple[Any, ...]
    """Numbers within the bounds, or bit depths in order."""
    weights: tuple[float, ...]
    """One of each value, 0 or more, not all of them 0."""

    def at(self, z: float) -> Any:
        """Return the quantile, values in the order given."""
        return pick(self.values, self.weights, _probability_below(z))


def pick(values: Sequence[Any], weights: Sequence[float], u: float) -> Any:
    """Return the value at `u` of 0..1 where each takes as much room as its weight."""
    ends = list(accumulate(weights))
    last = max(i for i, weight in enumerate(weights) if weight > 0)
    return values[min(bisect_right(ends, u * ends[-1]), last)]


def correlation_root(
    correlations: Mapping[tuple[str, str], float],
) -> tuple[tuple[float, ...], ...]:
    """Return the symmetric square root of the quantities' correlations.

    Args:
        correlations: two of `QUANTITIES`, in either order -> -1..1; 0 for pairs that are left out.

    Returns:
        (quantities, quantities): times independent standard normal numbers, it gives correlated
        ones.

    Raises:
        FedsimError: for correlations that cannot all hold: the matrix has a negative eigenvalue.
    """
    import numpy as np

    matrix = np.eye(len(QUANTITIES))
    for (first, second), value in correlations.items():
        i, j = QUANTITIES.index(first), QUANTITIES.index(second)
        matrix[i, j] = matrix[j, i] = value
    values, vectors = np.linalg.eigh(matrix)
    if values[0] < _MIN_EIGENVALUE:
        raise FedsimError(
            f"these cannot all hold at once (the matrix has the eigenvalue {values[0]:.3g}): bring"
            f" them nearer to 0"
        )
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return tuple(map(tuple, root.tolist()))


def _within_bounds(value: float) -> float:
    return min(max(value, MIN_QUANTITY), MAX_QUANTITY)


def _probability_below(z: float) -> float:
    """Return the probability that a standard normal number is below `z`."""
    return 0.5 * math.erfc(-z / math.sqrt(2))
