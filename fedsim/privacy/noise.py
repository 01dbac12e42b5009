"""Noise that makes a summary differentially private: how much, and from where.

The setting is local, user-level differential privacy. A device releases m coordinates in [0, 1];
neighbours are any two users, so all coordinates may change by 1 at once: an L2 sensitivity of
sqrt(m) and an L1 sensitivity of m.

Where noise comes from is a choice of its own:

- `secure` draws from the operating system by OpenDP, on a lattice and exactly, so that no
  floating-point rounding tells anything. It cannot be seeded: no second run gives the same table.
- `seeded` draws the same distribution from a numpy generator, so that a study can be repeated. Who
  knows the seed can subtract it, and its floating-point numbers leak (Mironov 2012, "On
  Significance of the Least Significant Bits for Differential Privacy"): it simulates what noise
  costs in accuracy and protects nobody. A deployment must use `secure`.
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
    """A distribution of noise: what it costs, and how to draw it."""

    accountant: str
    """What computes `scale` and `epsilon`, in words."""
    needs_delta: bool
    """Whether a delta of 0 is out of its reach."""
    scale: Callable[[float, float, int], float]
    """(epsilon, delta, coordinates) -> the least scale that keeps (epsilon, delta)."""
    epsilon: Callable[[float, float, int, int], float]
    """(scale, delta, coordinates, rounds) -> what so many releases cost together."""
    variance: Callable[[float], float]
    """scale -> variance of the noise of one coordinate."""
    seeded: Callable[[np.random.Generator, float, int], np.ndarray]
    """(generator, scale, coordinates) -> noise, float64 (m,)."""
    secure: Callable[[np.ndarray, float], np.ndarray]
    """(values, scale) -> the values with noise, float64 (m,)."""

    summary: str = ""


@dataclass(frozen=True)
class NoiseSource:
    """Where noise comes from."""

    add: Callable[[np.ndarray, Mechanism, float, np.random.Generator], np.ndarray]
    """f(values (m,), mechanism, scale, generator) -> values with noise, float64 (m,)."""
    summary: str


MECHANISMS: Registry[Mechanism] = Registry("mechanism")
NOISE: Registry[NoiseSource] = Registry("noise")


def noise_scale(mechanism: str, epsilon: float, delta: float, coordinates: int) -> float:
    """Return the scale that makes one release of `coordinates` in [0, 1] (epsilon, delta)-private.

    Gaussian: sigma = sqrt(m) s(epsilon, delta), s by Balle and Wang 2018, "Improving the Gaussian
    Mechanism for Differential Privacy", Theorem 8 (dp-accounting solves it). Laplace: b =
    m / epsilon, whatever delta is.

    Raises:
        FedsimError: an unknown mechanism, or an epsilon or delta outside its range.
    """
    chosen = MECHANISMS[mechanism]
    if not 0 < epsilon < math.inf:
        raise FedsimError(f"epsilon is {epsilon}: give a positive number, such as 1")
    check_delta(chosen, delta)
    if coordinates < 1:
        raise FedsimError(f"noise was asked for {coordinates} layers: release one or more")
    return chosen.scale(epsilon, delta, coordinates)


def check_delta(mechanism: Mechanism, delta: float) -> None:
    """Raise `FedsimError` unless delta is below 1 and above 0, or 0 where no delta is needed."""
    if not 0 <= delta < 1 or (mechanism.needs_delta and delta == 0):
        raise FedsimError(
            f"delta is {delta}: give a number above 0 and below 1 / clients; 0 is for laplace"
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
        values: (m,) in [0, 1]: what `noise_scale` counts on; others are a `ValueError`.
        mechanism: name of the distribution.
        scale: from `noise_scale`; 0 or less, which would be no noise, is a `ValueError`.
        noise: where it comes from, `seeded` or `secure`.
        rng: the client's generator; `secure` does not look at it.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError("values outside [0, 1] would not be covered by the noise: normalize them")
    if not 0 < scale < math.inf:
        raise ValueError(f"noise of scale {scale} protects nothing")
    return NOISE[noise].add(values, MECHANISMS[mechanism], scale, rng)


@lru_cache(maxsize=64)
def _gaussian_scale(epsilon: float, delta: float, coordinates: int) -> float:
    from dp_accounting import get_sigma_gaussian

    # The root is right to 1e-12: a little more noise puts it on the safe side.
    return math.sqrt(coordinates) * get_sigma_gaussian(epsilon, delta) * (1 + 1e-9)


def _gaussian_epsilon(scale: float, delta: float, coordinates: int, rounds: int) -> float:
    from dp_accounting import get_epsilon_gaussian

    # Exact: n releases cost as one whose sensitivity is sqrt(n) times as large (Dong, Roth and
    # Su 2022, "Gaussian Differential Privacy", Corollary 3.3).
    return float(get_epsilon_gaussian(scale / math.sqrt(coordinates * rounds), delta))


def _laplace_epsilon(scale: float, delta: float, coordinates: int, rounds: int) -> float:
    from dp_accounting.pld import privacy_loss_distribution as pld

    losses = coordinates * rounds
    total = losses / scale
    if delta == 0:
        return total
    # A coordinate may change by 1: the release is as many Laplace mechanisms of sensitivity 1.
    # Losses are rounded up, to steps that are small against 1 / scale, that of each. Below a delta
    # of about 1e-12 floating point ends and the sum is left.
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
        summary="Normal noise: (epsilon, delta), the least for more than a few layers; scale is its"
        " sigma.",
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
        "From the scenario's seed: a study can be repeated, and nobody is protected.",
    ),
)
NOISE.add(
    "secure",
    NoiseSource(
        lambda values, mechanism, scale, rng: mechanism.secure(values, scale),
        "From the operating system, by OpenDP: for a deployment; no two runs are alike.",
    ),
)
