"""How much a mechanism tells at least, measured from what it returns.

A claim of (epsilon, delta) bounds how well anyone can tell two users apart. So a test that tells
them apart better refutes the claim: a lower bound on epsilon, at a confidence, from the mechanism's
output alone. It proves no claim; it catches noise that is too small.

Two inputs are released n times each, and an event is looked for that one of them causes more often
than the other: a number computed from the release lies beyond a threshold. The threshold and the
side are chosen on the first half of the releases and the rates counted on the second, so that the
choice does not flatter the bound. Rates are bounded by Clopper and Pearson's exact intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedsim.errors import FedsimError

_THRESHOLDS = 400  # tried; more change nothing but the time

Statistic = Callable[[np.ndarray], float]
"""A release (m,) -> a number that is larger the more the release looks like the second input's."""

Evidence = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""(hits at least, false alarms at most, delta) -> epsilon at least, all (T,)."""


@dataclass(frozen=True)
class Audit:
    """What a measurement says: epsilon is at least this."""

    epsilon: float
    delta: float
    confidence: float
    trials: int
    """Releases of each input."""

    def sentence(self, claimed: float) -> str:
        """Return in words what the measurement says about a claimed epsilon."""
        found = (
            f"{self.trials:,} releases of each of two users show ε ≥ {self.epsilon:.3g} at δ ="
            f" {self.delta:.3g} ({100 * self.confidence:.4g} % confidence)"
        )
        if self.epsilon > claimed:
            return f"{found}: the claim of ε = {claimed:.4g} is refuted"
        return f"{found}: nothing against the claim of ε = {claimed:.4g}"


def any_noise(hits: np.ndarray, alarms: np.ndarray, delta: float) -> np.ndarray:
    """Return epsilon from the definition: hits <= e^epsilon alarms + delta. It assumes nothing."""
    gain = np.maximum(hits - delta, 0) / alarms
    return np.log(np.maximum(gain, 1))


def gaussian_noise(hits: np.ndarray, alarms: np.ndarray, delta: float) -> np.ndarray:
    """Return epsilon if the noise is normal: far stronger evidence from the same trials.

    Any test then has Phi^-1(hits) - Phi^-1(alarms) <= mu, the distance of the inputs in standard
    deviations of the noise, which gives epsilon at delta (Nasr et al. 2023, "Tight Auditing of
    Differentially Private Machine Learning", section 4).
    """
    from dp_accounting import get_epsilon_gaussian
    from scipy.special import ndtri

    distance = np.maximum(ndtri(hits) - ndtri(alarms), 0)
    best = int(np.argmax(distance))  # epsilon grows with the distance: only one is worked out
    epsilon = np.zeros(len(distance))
    if distance[best] > 0:
        epsilon[best] = get_epsilon_gaussian(1 / distance[best], delta)
    return epsilon


def epsilon_at_least(
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
        mechanism: input -> release (m,), with noise of its own at each call.
        one: an input. For values in [0, 1] the worst pair are all zeros and all ones; of Laplace
            noise on m of them, whose loss adds up, let a single one differ and compare with a
            claim of epsilon / m: the whole loss is too rare to be seen.
        other: its neighbour, of the same shape.
        trials: releases of each input, 100 or more; half of them choose the threshold.
        delta: of the claim.
        confidence: with which the bound holds.
        evidence: what is concluded from the rates, `any_noise` or `gaussian_noise`.
        statistic: by default the projection on `other - one`, the likelihood ratio of normal noise.

    Raises:
        FedsimError: fewer than 100 trials, or a delta or confidence outside 0..1.
    """
    if trials < 100 or not 0 <= delta < 1 or not 0 < confidence < 1:
        raise FedsimError(
            f"an audit of {trials} trials at delta {delta} and confidence {confidence} says"
            " nothing: give 100 trials or more, and numbers in 0..1"
        )
    direction = np.asarray(other, np.float64) - one
    score = statistic or (lambda told: float(told @ direction))
    scores = np.array([[score(mechanism(x)) for _ in range(trials)] for x in (one, other)])
    # Two kinds of events: the other causes large scores, and, turned round, the one small ones.
    events = (scores, -scores[::-1])
    half = trials // 2
    risk = (1 - confidence) / 2  # each of the two rates may fail its bound
    choices = []
    for pair in events:
        thresholds = np.quantile(pair[:, :half], np.linspace(0, 1, _THRESHOLDS))
        found = evidence(*_rates(pair[:, :half], thresholds, risk), delta)
        choices.append((float(found.max()), thresholds[[int(found.argmax())]]))
    best = int(choices[1][0] > choices[0][0])
    bound = evidence(*_rates(events[best][:, half:], choices[best][1], risk), delta)
    return Audit(float(bound[0]), delta, confidence, trials)


def _rates(pair: np.ndarray, thresholds: np.ndarray, risk: float) -> tuple[np.ndarray, np.ndarray]:
    """Return, per threshold, how often scores pair[1] reach it at least, and pair[0] at most."""
    from scipy.special import betaincinv

    n = pair.shape[1]
    alarms, hits = (n - np.searchsorted(np.sort(scores), thresholds) for scores in pair)
    least = np.where(hits > 0, betaincinv(np.maximum(hits, 1), n - hits + 1, risk), 0.0)
    most = np.where(alarms < n, betaincinv(alarms + 1, np.maximum(n - alarms, 1), 1 - risk), 1.0)
    return least, most
