"""Noise that makes a release differentially private: its scale, and its source.

The setting is local, user-level differential privacy. A device releases m coordinates in [0, 1].
Any two users are neighbours, so all coordinates may change by 1 at once: the L2 sensitivity is
sqrt(m), the L1 sensitivity m.

There are two sources of noise:

- `secure` draws from the operating system, by OpenDP, exactly and on a lattice, so that
  floating-point rounding leaks nothing. It cannot be seeded: two runs never give the same table.
- `seeded` draws the same distribution from a numpy generator, so that a study can be repeated.
  Anyone who knows the seed can subtract the noise, and its floating-point numbers leak (Mironov
  2012, "On Significance of the Least Significant Bits for Differential Privacy"): it simulates what
  noise costs in accuracy and protects nobody. A deployment must use `secure`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedsim.errors import FedsimError
from fedsim.registry import Registry


@dataclass(frozen=True)
class Mechanism:
    """A distribution of noise: its cost in privacy, and how it is drawn."""

    accountant: str
    """How `scale` and `epsilon` are computed, in words."""
    needs_delta: bool
    """Whether delta must be above 0."""
    scale: Callable[[float, float, int], float]
    """f(epsilon, delta, coordinates) -> the minimum scale for (epsilon, delta)."""
    epsilon: Callable[[float, float, int, int], float]
    """f(scale, delta, coordinates, rounds) -> epsilon of all rounds together."""
    variance: Callable[[float], float]
    """f(scale) -> variance of the noise of one coordinate."""
    seeded: Callable[[np.random.Generator, float, int], np.ndarray]
    """f(generator, scale, coordinates) -> noise, float64 (m,)."""
    secure: Callable[[np.ndarray, float], np.ndarray]
    """f(values, scale) -> the values with noise, float64 (m,)."""
    summary: str
    is_normal: bool = False
    """Whether the noise is normal, so that an audit may assume it (`audit.gaussian_noise`)."""


@dataclass(frozen=True)
class NoiseSource:
    """A source of noise."""

    add: Callable[[np.ndarray, Mechanism, float, np.random.Generator], np.ndarray]
    """f(values (m,), mechanism, scale, generator) -> values with noise, float64 (m,)."""
    summary: str


MECHANISMS: Registry[Mechanism] = Registry("mechanism")
NOISE: Registry[NoiseSource] = Registry("noise")


def noise_scale(mechanism: str, epsilon: float, delta: float, coordinates: int) -> float:
    """Return the scale that makes one release of `coordinates` in [0, 1] (epsilon, delta)-private.

    Gaussian: sigma = sqrt(m) s(epsilon, delta), with s by Balle and Wang 2018, "Improving the
    Gaussian Mechanism for Differential Privacy", Theorem 8 (solved by dp-accounting). Laplace: b =
    m / epsilon, for any delta.

    Raises:
        FedsimError: if the mechanism is unknown, or epsilon or delta is outside its range.
    """
    chosen = MECHANISMS[mechanism]
    if not 0 < epsilon < math.inf:
        raise FedsimError(f"epsilon is {epsilon}; give a positive number, such as 1")
    check_delta(chosen, delta)
    if coordinates < 1:
        raise FedsimError(
            f"noise for {coordinates} layers: there is nothing to release; give 1 or more"
        )
    return chosen.scale(epsilon, delta, coordinates)


def check_delta(mechanism: Mechanism, delta: float) -> None:
    """Raise `FedsimError` unless 0 < delta < 1, or delta is 0 and the mechanism needs none."""
    if not 0 <= delta < 1 or (mechanism.needs_delta and delta == 0):
        raise FedsimError(
            f"delta is {delta}; give a number above 0 and below 1 / clients, or 0 for laplace noise"
        )


def perturb(
    values: np.ndarray,
    mechanism: str,
    scale: float,
    noise: str,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the values with noise, float64 (m,).

    Args:
        values: (m,) in [0, 1], as `noise_scale` assumes.
        mechanism: name of the distribution.
        scale: from `noise_scale`, positive.
        noise: name of the source, `seeded` or `secure`.
        rng: the client's generator; not used by `secure`.

    Raises:
        ValueError: if a value is outside [0, 1], or the scale is not positive and finite.
        FedsimError: for an unknown name.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError("noise does not cover values outside [0, 1]: normalize them first")
    if not 0 < scale < math.inf:
        raise ValueError(f"noise of scale {scale} protects nothing")
    return NOISE[noise].add(values, MECHANISMS[mechanism], scale, rng)


@lru_cache(maxsize=64)
def _gaussian_scale(epsilon: float, delta: float, coordinates: int) -> float:
    from dp_accounting import get_sigma_gaussian

    # The root is accurate to 1e-12: slightly more noise is on the safe side.
    return math.sqrt(coordinates) * get_sigma_gaussian(epsilon, delta) * (1 + 1e-9)


def _gaussian_epsilon(scale: float, delta: float, coordinates: int, rounds: int) -> float:
    from dp_accounting import get_epsilon_gaussian

    # Exact: n releases cost as much as one of sqrt(n) times the sensitivity (Dong, Roth and Su
    # 2022, "Gaussian Differential Privacy", Corollary 3.3).
    return float(get_epsilon_gaussian(scale / math.sqrt(coordinates * rounds), delta))


def _laplace_epsilon(scale: float, delta: float, coordinates: int, rounds: int) -> float:
    from dp_accounting.pld import privacy_loss_distribution as pld

    losses = coordinates * rounds
    total = losses / scale
    if delta == 0:
        return total
    # Each coordinate may change by 1: the release is that many Laplace mechanisms of sensitivity 1.
    # Losses are rounded up to steps that are small against 1 / scale, the loss of each. For a delta
    # below about 1e-12, floating point is too coarse and the sum remains.
    one = pld.from_laplace_mechanism(scale, value_discretization_interval=min(1e-3, 0.1 / scale))
    return min(total, float(one.self_compose(losses).get_epsilon_for_delta(delta)))


def _secure_gaussian(values: np.ndarray, scale: float) -> np.ndarray:
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.l2_distance(T=float)
    return np.asarray(dp.m.make_gaussian(*space, scale)(values.tolist()))


def _secure_laplace(values: np.ndarray, scale: float) -> np.ndarray:
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.l1_distance(T=float)
    return np.asarray(dp.m.make_laplace(*space, scale)(values.tolist()))


MECHANISMS.add(
    "gaussian",
    Mechanism(
        accountant="the analytic Gaussian mechanism",
        needs_delta=True,
        scale=_gaussian_scale,
        epsilon=_gaussian_epsilon,
        variance=lambda scale: scale**2,
        seeded=lambda rng, scale, n: rng.normal(0.0, scale, n),
        secure=_secure_gaussian,
        summary="Normal noise: (epsilon, delta), the smallest for more than a few layers; scale is"
        " its sigma.",
        is_normal=True,
    ),
)
MECHANISMS.add(
    "laplace",
    Mechanism(
        accountant="the sum of all losses, or their distribution (PLD) where delta is given",
        needs_delta=False,
        scale=lambda epsilon, delta, coordinates: coordinates / epsilon,
        epsilon=_laplace_epsilon,
        variance=lambda scale: 2 * scale**2,
        seeded=lambda rng, scale, n: rng.laplace(0.0, scale, n),
        secure=_secure_laplace,
        summary="Laplace noise: pure epsilon, no delta; scale is its mean absolute value.",
    ),
)
NOISE.add(
    "seeded",
    NoiseSource(
        lambda values, mechanism, scale, rng: values + mechanism.seeded(rng, scale, len(values)),
        "From the scenario's seed: a study can be repeated, but nobody is protected.",
    ),
)
NOISE.add(
    "secure",
    NoiseSource(
        lambda values, mechanism, scale, rng: mechanism.secure(values, scale),
        "From the operating system, by OpenDP: for a deployment; no two runs are equal.",
    ),
)
