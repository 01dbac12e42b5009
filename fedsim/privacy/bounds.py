"""Public bounds of each layer's sensitivity, and the mapping of values between them to [0, 1].

Noise must cover every value that a user could have, so values are first clipped to bounds that
depend only on the audio of public speakers. Layers differ in scale by orders of magnitude, so
bounds are computed, and values mapped to [0, 1], in the logarithm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.errors import FedsimError

QUANTILES = (0.05, 0.95)
"""Of the public speakers' values of a layer: a few outliers must not widen the noise of all."""
MARGIN = 0.25
"""How far bounds extend beyond these quantiles, as a share of their distance in the logarithm. The
bounds then contain 98.6 % of a normal distribution."""
MIN_RATIO = 1.01
"""Minimum of high / low, for layers on which all public speakers agree."""


@dataclass(frozen=True, eq=False)
class Bounds:
    """The range of each layer's sensitivity, float64 (L,) each: 0 < low < high.

    Raises `FedsimError`, with the layer, for bounds that are not such a range.
    """

    low: np.ndarray
    high: np.ndarray

    def __post_init__(self) -> None:
        if self.low.ndim != 1 or self.low.shape != self.high.shape or not self.low.size:
            raise FedsimError(
                f"bounds have shapes {self.low.shape} and {self.high.shape}; give one low and one"
                " high per layer"
            )
        sound = (self.low > 0) & (self.low < self.high) & np.isfinite(self.high)
        if not sound.all():
            at = int(np.flatnonzero(~sound)[0])
            raise FedsimError(
                f"the bounds of layer {at} are {self.low[at]:g} and {self.high[at]:g}; they must be"
                " finite, above 0, and the first below the second"
            )

    @property
    def middle(self) -> np.ndarray:
        """Geometric middle of each range, float64 (L,)."""
        return np.sqrt(self.low) * np.sqrt(self.high)

    def sentence(self) -> str:
        """Return in words to what values are clipped."""
        ratios = self.high / self.low
        return (
            f"each of {len(ratios)} layers is clipped to public bounds, the upper"
            f" {ratios.min():.3g} to {ratios.max():.3g} times the lower"
        )


def public_bounds(
    sensitivities: np.ndarray,
    *,
    quantiles: tuple[float, float] = QUANTILES,
    margin: float = MARGIN,
) -> Bounds:
    """Return bounds from the sensitivities of public speakers.

    Per layer, in the logarithm: from the lower to the upper of `quantiles` over the speakers,
    extended at both ends by `margin` times their distance.

    Args:
        sensitivities: of S public speakers, (S, L), positive.
        quantiles: of the speakers, each in [0, 1].
        margin: 0 or more.

    Raises:
        FedsimError: if there are fewer than two speakers, a value is not positive and finite, or
            an argument is out of range.
    """
    values = np.asarray(sensitivities, np.float64)
    if values.ndim != 2 or len(values) < 2 or not values.shape[1]:
        raise FedsimError(
            f"bounds need the sensitivities of 2 public speakers or more, (S, L); the shape is"
            f" {values.shape}"
        )
    if not 0 <= quantiles[0] < quantiles[1] <= 1 or not 0 <= margin < np.inf:
        raise FedsimError(
            f"bounds from quantiles {quantiles} with a margin of {margin} do not exist; give two"
            " increasing numbers in 0..1 and a margin of 0 or more"
        )
    sound = (values > 0) & np.isfinite(values)
    if not sound.all():
        speaker, layer = (int(i) for i in np.argwhere(~sound)[0])
        raise FedsimError(
            f"layer {layer} of public speaker {speaker} has the sensitivity"
            f" {values[speaker, layer]:g}, and bounds need positive ones; choose a measure that is"
            " always positive, such as median"
        )
    low, high = np.quantile(np.log(values), quantiles, axis=0)
    reach = margin * (high - low)
    missing = np.maximum(np.log(MIN_RATIO) - (high - low + 2 * reach), 0) / 2
    return Bounds(np.exp(low - reach - missing), np.exp(high + reach + missing))


def clip(values: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Return the sensitivities (L,) clipped to their bounds, float64.

    Raises `FedsimError` for another number of values, or one that is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.shape != bounds.low.shape:
        raise FedsimError(
            f"a profile of {values.size} values has bounds for {bounds.low.size} layers; give one"
            " range per value"
        )
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise FedsimError(f"the sensitivity of layer {at} is {values[at]}; it must be finite")
    return np.clip(values, bounds.low, bounds.high)


def normalize(values: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Return the positions of clipped sensitivities between their bounds, float64 (L,) in [0, 1].

    u = log(v / low) / log(high / low).
    """
    low, high = np.log(bounds.low), np.log(bounds.high)
    return np.clip((np.log(clip(values, bounds)) - low) / (high - low), 0, 1)


def denormalize(places: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Return the sensitivities (L,) at the given positions: the inverse of `normalize`.

    Positions outside [0, 1], which noise produces, are clipped.
    """
    low, high = np.log(bounds.low), np.log(bounds.high)
    return clip(np.exp(low + np.clip(places, 0, 1) * (high - low)), bounds)
