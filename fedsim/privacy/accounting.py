"""The cost of releases in differential privacy, in numbers and in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsim.errors import FedsimError
from fedsim.privacy.noise import MECHANISMS, NOISE, check_delta, noise_scale

UNIT = "all audio of one user"
NEIGHBOURS = "any other audio in its place"


@dataclass(frozen=True)
class Guarantee:
    """What is promised to each user about the releases of the device; made by `guarantee`."""

    unit: str
    """What is protected of a user."""
    neighbours: str
    """What the protected data cannot be distinguished from."""
    clipping: str
    """The bounds to which values are clipped, in words."""
    mechanism: str
    scale: float
    """Of the noise, as a share of the range between a layer's bounds."""
    noise: str
    """Source of the noise: `seeded` or `secure`."""
    epsilon: float
    """Of one release."""
    delta: float
    accountant: str
    rounds: int
    cumulative_epsilon: float
    """Of all rounds together, at the same delta."""

    def sentence(self) -> str:
        """Return the guarantee in words, with its restrictions."""
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

    Each may be chosen after the earlier ones are known. Gaussian: exact. Laplace: the sum of the
    losses at delta 0, else an upper bound from their distribution (Koskela, Jälkö and Honkela 2020;
    dp-accounting, rounded up).

    Raises:
        FedsimError: if the mechanism is unknown, a number is not positive, or delta is outside its
            range.
    """
    chosen = MECHANISMS[mechanism]
    check_delta(chosen, delta)
    if not 0 < scale < math.inf or coordinates < 1 or rounds < 1:
        raise FedsimError(
            f"{rounds} releases of {coordinates} layers with noise of scale {scale} cannot be"
            " accounted for; each number must be positive"
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
    """Return the guarantee of `rounds` releases to each of `clients` users.

    Args:
        mechanism: name of the distribution of noise.
        epsilon: of one release, positive.
        delta: of one release, and of all together; below 1 / clients, because it can be the chance
            that nothing is protected. Laplace noise allows 0.
        coordinates: layers in a release.
        rounds: number of releases per device.
        clients: number of users.
        clipping: `Bounds.sentence()`.
        noise: `seeded` or `secure`.

    Raises:
        FedsimError: if a name is unknown or a number is outside its range.
    """
    NOISE[noise]
    scale = noise_scale(mechanism, epsilon, delta, coordinates)
    if delta * clients >= 1:
        raise FedsimError(
            f"delta is {delta} and there are {clients} clients; use less than 1 / clients ="
            f" {1 / clients:.3g}, or one of them may be left unprotected"
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
