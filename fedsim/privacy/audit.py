"""A lower bound on the epsilon of a mechanism, measured on its releases.

A claim of (epsilon, delta) limits how well anyone can distinguish two users. A test that does
better refutes it: its rates give a lower bound on epsilon, at a confidence, from releases alone.
This cannot prove a claim; it catches noise that is too small.

Two inputs are released n times each, and the test is an event that one of them causes more often:
a statistic of the release lies beyond a threshold. Threshold and side are chosen on the first half
of the releases, and the rates counted on the second, so that the choice does not bias the bound.
Rates are bounded by Clopper and Pearson's exact intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedsim.errors import FedsimError

_THRESHOLDS = 400  # more change only the time

Statistic = Callable[[np.ndarray], float]
"""f(release (m,)) -> a number that grows with the likeness to releases of the second input."""

Evidence = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""f(lower bounds of hit rates (T,), upper bounds of false-alarm rates (T,), delta) -> lower bounds
of epsilon (T,)."""


@dataclass(frozen=True)
class Audit:
    """A measured lower bound on epsilon."""

    epsilon: float
    delta: float
    confidence: float
    trials: int
    """Releases of each input."""

    def sentence(self, claimed: float) -> str:
        """Return in words what the measurement means for a claimed epsilon."""
        found = (
            f"{self.trials:,} releases of each of two users show ε ≥ {self.epsilon:.3g} at δ ="
            f" {self.delta:.3g} ({100 * self.confidence:.4g} % confidence)"
        )
        if self.epsilon > claimed:
            return f"{found}: the claim of ε = {claimed:.4g} is refuted"
        return f"{found}: nothing against the claim of ε = {claimed:.4g}"


def any_noise(hits: np.ndarray, alarms: np.ndarray, delta: float) -> np.ndarray:
    """Return epsilon from its definition, hits <= e^epsilon alarms + delta, for any noise."""
    gain = np.maximum(hits - delta, 0) / alarms
    return np.log(np.maximum(gain, 1))


def gaussian_noise(hits: np.ndarray, alarms: np.ndarray, delta: float) -> np.ndarray:
    """Return epsilon for normal noise: a far tighter bound from the same trials.

    Any test then has Phi^-1(hits) - Phi^-1(alarms) <= mu, the distance of the inputs in standard
    deviations of the noise, and mu gives epsilon at delta (Nasr et al. 2023, "Tight Auditing of
    Differentially Private Machine Learning", section 4).
    """
    from dp_accounting import get_epsilon_gaussian
    from scipy.special import ndtri

    distance = np.maximum(ndtri(hits) - ndtri(alarms), 0)
    best = int(np.argmax(distance))  # epsilon grows with the distance: only the largest counts
    epsilon = np.zeros(len(distance))
    if distance[best] > 0:
        epsilon[best] = get_epsilon_gaussian(1 / distance[best], delta)
    return epsilon


def epsilon_lower_bound(
    mechanism: Callable[[np.ndarray], np.ndarray],
    one: np.ndarray,
    other: np.ndarray,
    *,
    trials: int,
    delta: float,
    confidence: float = 0.95,
    evidence: Evidence = any_noise,
    statistic: Statistic | None = None,
) -> Audit:
    """Return the lower bound on epsilon that releases of two neighbouring inputs show.

    Args:
        mechanism: f(input) -> release (m,), with new noise at each call.
        one: an input. For values in [0, 1] the worst pair is all zeros and all ones. With Laplace
            noise on m values, whose losses add up, an event with the whole loss is too rare to be
            observed: let a single value differ, and compare with a claim of epsilon / m.
        other: its neighbour, of the same shape.
        trials: releases of each input, 100 or more; half of them choose the threshold.
        delta: of the claim.
        confidence: of the bound.
        evidence: how rates give epsilon, `any_noise` or `gaussian_noise`.
        statistic: by default the projection on `other - one`, the likelihood ratio of normal noise.

    Raises:
        FedsimError: if there are fewer than 100 trials, or delta or confidence is outside 0..1.
    """
    if trials < 100 or not 0 <= delta < 1 or not 0 < confidence < 1:
        raise FedsimError(
            f"an audit of {trials} trials at delta {delta} and confidence {confidence} says"
            " nothing; give 100 trials or more, and numbers in 0..1"
        )
    direction = np.asarray(other, np.float64) - one
    score = statistic or (lambda released: float(released @ direction))
    scores = np.array([[score(mechanism(x)) for _ in range(trials)] for x in (one, other)])
    # Two kinds of events: large scores, caused by `other`; small ones, negated here, by `one`.
    events = (scores, -scores[::-1])
    half = trials // 2
    risk = (1 - confidence) / 2  # of each of the two rates
    choices = []
    for pair in events:
        thresholds = np.quantile(pair[:, :half], np.linspace(0, 1, _THRESHOLDS))
        found = evidence(*_rates(pair[:, :half], thresholds, risk), delta)
        choices.append((float(found.max()), thresholds[[int(found.argmax())]]))
    best = int(choices[1][0] > choices[0][0])
    bound = evidence(*_rates(events[best][:, half:], choices[best][1], risk), delta)
    return Audit(float(bound[0]), delta, confidence, trials)


def _rates(pair: np.ndarray, thresholds: np.ndarray, risk: float) -> tuple[np.ndarray, np.ndarray]:
    """Return per threshold bounds of two rates: lower of pair[1] >= it, upper of pair[0] >= it."""
    from scipy.special import betaincinv

    n = pair.shape[1]
    alarms, hits = (n - np.searchsorted(np.sort(scores), thresholds) for scores in pair)
    lower = np.where(hits > 0, betaincinv(np.maximum(hits, 1), n - hits + 1, risk), 0.0)
    upper = np.where(alarms < n, betaincinv(alarms + 1, np.maximum(n - alarms, 1), 1 - risk), 1.0)
    return lower, upper
