"""What releases cost in differential privacy, and the sentence that says so."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsim.errors import FedsimError
from fedsim.privacy.noise import MECHANISMS, NOISE, check_delta, noise_scale

UNIT = "all audio of one user"
NEIGHBOURS = "any other audio in its place"


@dataclass(frozen=True)
class Guarantee:
    """What is promised to each user about what leaves the device; `guarantee` makes one."""

    unit: str
    """What of a user is protected."""
    neighbours: str
    """Between what and what nobody can tell."""
    clipping: str
    """What the values were clipped to, in words."""
    mechanism: str
    scale: float
    """Of the noise, in shares of the range between a layer's bounds."""
    noise: str
    """Where it came from: `seeded` or `secure`."""
    epsilon: float
    """Of one release."""
    delta: float
    accountant: str
    rounds: int
    cumulative_epsilon: float
    """Of all rounds together, at the same delta."""

    def sentence(self) -> str:
        """Return the guarantee in words, and what it does not hold for."""
        at = f" at δ = {self.delta:.3g}" if self.delta else ""
        many = (
            f", {self.cumulative_epsilon:.4g} over {self.rounds} of them" if self.rounds > 1 else ""
        )
        text = (
            f"A release costs ε = {self.epsilon:.4g}{at}{many}: local differential privacy of"
            f" {self.unit}, against {self.neighbours}; {self.clipping}, then given {self.mechanism}"
            f" noise of scale {self.scale:.4g} ranges, by {self.accountant}."
        )
        if self.noise == "secure":
            return text
        return (
            f"{text} The noise was drawn from the scenario's seed, so that the study can be"
            " repeated: it shows what this guarantee costs, and protects nobody; a deployment must"
            " use secure noise."
        )


def compose(mechanism: str, scale: float, coordinates: int, rounds: int, delta: float) -> float:
    """Return the epsilon, at `delta`, of `rounds` releases of `coordinates` in [0, 1].

    Each may depend on the answers before it. Gaussian: exact. Laplace: the sum of the losses at
    delta 0, else an upper bound from their distribution (Koskela, Jälkö and Honkela 2020;
    dp-accounting, rounding up).

    Raises:
        FedsimError: an unknown mechanism, no rounds, or a delta outside its range.
    """
    chosen = MECHANISMS[mechanism]
    check_delta(chosen, delta)
    if not 0 < scale < math.inf or coordinates < 1 or rounds < 1:
        raise FedsimError(
            f"{rounds} releases of {coordinates} layers with noise of scale {scale} cannot be"
            " accounted for: each number must be positive"
        )
    return chosen.epsilon(scale, delta, coordinates, rounds)


def guarantee(
    mechanism: str,
    epsilon: float,
    delta: float,
    *,
    coordinates: int,
    rounds: int,
    clients: int,
    clipping: str,
    noise: str,
) -> Guarantee:
    """Return what `rounds` releases promise to each of `clients` users.

    Args:
        mechanism: name of the distribution of noise.
        epsilon: of one release, positive.
        delta: of one release and of all; below 1 / clients, for it may be read as the chance that
            nothing is protected. Laplace noise allows 0.
        coordinates: layers in a release.
        rounds: releases of a device.
        clients: how many users there are.
        clipping: `Bounds.sentence()`.
        noise: `seeded` or `secure`.

    Raises:
        FedsimError: an unknown name, or a number outside its range.
    """
    NOISE[noise]
    scale = noise_scale(mechanism, epsilon, delta, coordinates)
    if delta * clients >= 1:
        raise FedsimError(
            f"delta is {delta} and there are {clients} clients: it must be below 1 / clients ="
            f" {1 / clients:.3g}, or one of them may go unprotected"
        )
    return Guarantee(
        unit=UNIT,
        neighbours=NEIGHBOURS,
        clipping=clipping,
        mechanism=mechanism,
        scale=scale,
        noise=noise,
        epsilon=epsilon,
        delta=delta,
        accountant=MECHANISMS[mechanism].accountant,
        rounds=rounds,
        cumulative_epsilon=compose(mechanism, scale, coordinates, rounds, delta),
    )
