"""What device and server agree on before any audio is heard; each release reads its part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.errors import FedsimError
from fedsim.privacy.bounds import Bounds


@dataclass(frozen=True, eq=False)
class ReleaseParams:
    """The public parameters of a release of a layer profile, a vector or a table."""

    layers: int
    """L."""
    per_layer: int = 1
    """Values per layer: 1 of a vector, the number of bit depths of a table."""
    bounds: Bounds | None = None
    """quantized, noisy, none: the public range of each value."""
    bits: int = 8
    """quantized: bits per value."""
    mechanism: str = "gaussian"
    """noisy: distribution of the noise."""
    epsilon: float = 1.0
    delta: float = 1e-6
    """noisy: what a release may cost."""
    noise: str = "seeded"
    """noisy: where the noise comes from."""
    chosen: tuple[int, ...] | None = None
    """noisy: the layers that are released, so that fewer values share the noise; None: all."""
    depths: tuple[int, ...] = ()
    """plan: the legal bit depths."""
    plan: Callable[[np.ndarray], Sequence[int]] | None = None
    """plan, on the device: values (n,) -> bit depth of each layer."""

    @property
    def values(self) -> int:
        """Number of values of the profile, n."""
        return self.layers * self.per_layer

    def required_bounds(self) -> Bounds:
        """Return the bounds; `FedsimError` unless there is one range per value."""
        if self.bounds is None or self.bounds.low.size != self.values:
            found = "none" if self.bounds is None else str(self.bounds.low.size)
            raise FedsimError(
                f"this release needs public bounds of {self.values} values, and there are {found}"
            )
        return self.bounds

    def steps(self) -> int:
        """Return the largest code of a quantized value."""
        if not 1 <= self.bits <= 32:
            raise FedsimError(f"a release of {self.bits} bits per value: use 1 to 32")
        return (1 << self.bits) - 1

    def released(self) -> list[int]:
        """Return the places of the values that are released, in the order they travel."""
        layers = range(self.layers)
        chosen = layers if self.chosen is None else self.chosen
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(layers):
            raise FedsimError(
                f"layers {tuple(chosen)} cannot be released: name one or more of 0 to "
                f"{self.layers - 1}, each once"
            )
        return [layer * self.per_layer + i for layer in chosen for i in range(self.per_layer)]
