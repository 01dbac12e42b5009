"""Parameters of releases, on which device and server agree before any audio is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.errors import FedsimError
from fedsim.privacy.bounds import Bounds


@dataclass(frozen=True, eq=False)
class ReleaseParams:
    """The public parameters of a release of a layer profile, a vector or a table.

    Each release reads some of them: the docstrings begin with its name.
    """

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
    """noisy: maximum cost of a release, with `epsilon`."""
    noise: str = "seeded"
    """noisy: name of the source of noise."""
    chosen: tuple[int, ...] | None = None
    """noisy: the layers that are released, None for all: fewer values need less noise each."""
    depths: tuple[int, ...] = ()
    """plan: the legal bit depths."""
    plan: Callable[[np.ndarray], Sequence[int]] | None = None
    """plan, on the device: values (n,) -> bit depth of each layer."""

    @property
    def values(self) -> int:
        """Number of values of the profile, n."""
        return self.layers * self.per_layer

    def required_bounds(self) -> Bounds:
        """Return the bounds; raises `FedsimError` unless there is one range per value."""
        if self.bounds is None or self.bounds.low.size != self.values:
            found = "none" if self.bounds is None else str(self.bounds.low.size)
            raise FedsimError(
                f"the release needs public bounds of {self.values} values, and there are {found};"
                f" give one range per value"
            )
        return self.bounds

    def steps(self) -> int:
        """Return the largest code of a quantized value."""
        if not 1 <= self.bits <= 32:
            raise FedsimError(f"release: {self.bits} bits per value; use 1 to 32")
        return (1 << self.bits) - 1

    def released(self) -> list[int]:
        """Return the indices of the values that are released, in the order of the payload.

        Raises `FedsimError` for layers that the model does not have, or one named twice.
        """
        layers = range(self.layers)
        chosen = layers if self.chosen is None else self.chosen
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(layers):
            raise FedsimError(
                f"layers {tuple(chosen)} cannot be released; name one or more of 0 to "
                f"{self.layers - 1}, each once"
            )
        return [layer * self.per_layer + i for layer in chosen for i in range(self.per_layer)]
