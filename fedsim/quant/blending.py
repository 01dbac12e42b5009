"""Whose second moments a rounding reads: public ones, a client's own, or a blend of both.

A blend is computed layer by layer, when a rounding asks for the layer: for a large model the
matrices of all layers take more than its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fedsim.quant.moments import SecondMoments


def blend(
    own: Mapping[str, SecondMoments], public: Mapping[str, SecondMoments], weight: float
) -> dict[str, SecondMoments]:
    """Return `weight` times own moments plus (1 - `weight`) times public ones, layer by layer.

    Where only one of the two has a layer, that one is taken. Layers that share moments in both
    share their blend.
    """
    blended = dict(public) | dict(own)
    pairs: dict[tuple[int, int], BlendedMoments] = {}
    for name in own.keys() & public.keys():
        pair = id(own[name]), id(public[name])
        if pair not in pairs:
            pairs[pair] = BlendedMoments(own[name], public[name], weight)
        blended[name] = pairs[pair]
    return blended


def mixed(
    whose: str,
    own: Callable[[], Mapping[str, SecondMoments]],
    public: Callable[[], Mapping[str, SecondMoments]],
    own_weight: float,
) -> Mapping[str, SecondMoments]:
    """Return the moments that rounding reads: `whose` is public, own, or blend (see `blend`).

    `own` and `public` are called only if needed.
    """
    if whose == "public":
        return public()
    return own() if whose == "own" else blend(own(), public(), own_weight)


@dataclass(frozen=True, eq=False)
class BlendedMoments:
    """A blend of two sets of moments of one layer; see `fedsim.quant.moments.SecondMoments`."""

    own: SecondMoments
    public: SecondMoments
    own_weight: float

    @property
    def mean(self) -> np.ndarray:
        """The blend, float32 (G, K, K), computed anew each time."""
        weight = self.own_weight
        return np.float32(weight) * self.own.mean + np.float32(1 - weight) * self.public.mean

    @property
    def rows(self) -> int:
        """Inputs on which both rest together."""
        return self.own.rows + self.public.rows

    @property
    def nbytes(self) -> int:
        """Bytes of the blend."""
        return self.own.nbytes
