"""Public bounds of each layer's sensitivity, and the unit cube that they map it to.

Noise must cover all that a user's value could be, so values are first clipped to bounds that depend
on nobody's audio but that of public speakers. Layers differ in scale by orders of magnitude:
bounds are found, and values mapped to [0, 1], in the logarithm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.errors import FedsimError

QUANTILES = (0.05, 0.95)
"""Of the public speakers' values of a layer: a few odd voices must not widen everybody's noise."""
MARGIN = 0.25
"""How far bounds reach beyond these quantiles, in shares of their distance (in the logarithm).
Of a normal distribution the bounds then hold 98.6 %."""
LEAST_RATIO = 1.01
"""high / low at least, for layers that public speakers do not tell apart."""


@dataclass(frozen=True, eq=False)
class Bounds:
    """The range of each layer's sensitivity, float64 (L,) each: 0 < low < high.

    Raises `FedsimError` for bounds that are no such range, and names the layer.
    """

    low: np.ndarray
    high: np.ndarray

    def __post_init__(self) -> None:
        if self.low.ndim != 1 or self.low.shape != self.high.shape or not self.low.size:
            raise FedsimError(
                f"bounds of shapes {self.low.shape} and {self.high.shape} are no ranges of layers:"
                " give one low and one high a layer"
            )
        sound = (self.low > 0) & (self.low < self.high) & np.isfinite(self.high)
        if not sound.all():
            at = int(np.flatnonzero(~sound)[0])
            raise FedsimError(
                f"the bounds of layer {at} are {self.low[at]:g} and {self.high[at]:g}: they must be"
                " finite, above 0, and the first below the second"
            )

    @property
    def middle(self) -> np.ndarray:
        """Geometric middle of each range, float64 (L,)."""
        return np.sqrt(self.low) * np.sqrt(self.high)

    def sentence(self) -> str:
        """Return in words what is clipped to what."""
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
    """Return the bounds that public speakers' sensitivities suggest.

    In the logarithm, per layer: from the lower to the upper of `quantiles` over the speakers,
    widened at both ends by `margin` times that distance.

    Args:
        sensitivities: of S public speakers, (S, L), positive.
        quantiles: of the speakers, each in [0, 1].
        margin: 0 or more.

    Raises:
        FedsimError: fewer than two speakers, or a value that is not positive and finite.
    """
    values = np.asarray(sensitivities, np.float64)
    if values.ndim != 2 or len(values) < 2 or not values.shape[1]:
        raise FedsimError(
            f"bounds need the sensitivities of 2 public speakers or more, not shape {values.shape}"
        )
    if not 0 <= quantiles[0] < quantiles[1] <= 1 or not 0 <= margin < np.inf:
        raise FedsimError(
            f"bounds from quantiles {quantiles} with a margin of {margin} cannot be: give two"
            " growing numbers in 0..1 and a margin of 0 or more"
        )
    sound = (values > 0) & np.isfinite(values)
    if not sound.all():
        speaker, layer = (int(i) for i in np.argwhere(~sound)[0])
        raise FedsimError(
            f"layer {layer} of public speaker {speaker} has the sensitivity"
            f" {values[speaker, layer]:g}, and bounds need positive ones: choose a measure that is"
            " never negative or 0, such as median"
        )
    low, high = np.quantile(np.log(values), quantiles, axis=0)
    reach = margin * (high - low)
    missing = np.maximum(np.log(LEAST_RATIO) - (high - low + 2 * reach), 0) / 2
    return Bounds(np.exp(low - reach - missing), np.exp(high + reach + missing))


def clip(values: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Return the sensitivities (L,) moved to the nearest end of their bounds, float64.

    Raises `FedsimError` for another number of layers, or a value that is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.shape != bounds.low.shape:
        raise FedsimError(
            f"a sensitivity summary of {values.size} values came for bounds of {bounds.low.size}"
            " layers"
        )
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise FedsimError(f"the sensitivity of layer {at} is {values[at]}: it must be finite")
    return np.clip(values, bounds.low, bounds.high)


def normalize(values: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Return where the clipped sensitivities lie between their bounds, float64 (L,) in [0, 1].

    u = log(v / low) / log(high / low).
    """
    low, high = np.log(bounds.low), np.log(bounds.high)
    return np.clip((np.log(clip(values, bounds)) - low) / (high - low), 0, 1)


def denormalize(places: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Return the sensitivities (L,) at the given places: the inverse of `normalize`.

    Places outside [0, 1], as noise makes them, are taken for the nearest end.
    """
    low, high = np.log(bounds.low), np.log(bounds.high)
    return clip(np.exp(low + np.clip(places, 0, 1) * (high - low)), bounds)
