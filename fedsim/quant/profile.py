"""What a device reports about its model's layers: one value per layer, or per layer and depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.errors import FedsimError


@dataclass(frozen=True, eq=False)
class LayerProfile:
    """A vector (L,) of sensitivities, or a table (L, D) of losses at D bit depths.

    Raises `FedsimError` for values of another shape and for values that are not finite.
    """

    values: np.ndarray
    """float64, (L,) or (L, D)."""
    measure: str
    """Name of what was measured."""
    depths: tuple[int, ...] = ()
    """Bit depths of a table's columns, ascending; empty for a vector."""
    pairs: np.ndarray | None = None

    def __post_init__(self) -> None:
        columns = (len(self.depths),) if self.depths else ()
        if self.values.ndim != 1 + len(columns) or self.values.shape[1:] != columns:
            raise FedsimError(
                f"layer profile {self.measure!r}: shape {self.values.shape} does not fit "
                f"{len(self.depths)} bit depths; give one value per layer, or a row per layer and "
                f"a column per depth"
            )
        if not np.isfinite(self.values).all():
            at = np.argwhere(~np.isfinite(self.values))[0].tolist()
            raise FedsimError(
                f"layer profile {self.measure!r}: the value of layer {at[0]} is "
                f"{self.values[tuple(at)]}; give finite values"
            )

    @property
    def layers(self) -> int:
        """Number of layers, L."""
        return len(self.values)

    @property
    def is_table(self) -> bool:
        """Whether there is one value per layer and bit depth."""
        return bool(self.depths)

    @property
    def flat(self) -> np.ndarray:
        """The values layer by layer, float64 (L,) or (L * D,), as messages carry them."""
        return self.values.reshape(-1)

    def at(self, depths: Sequence[int]) -> LayerProfile:
        """Return a table with the columns of these bit depths only, ascending; a vector as it is.

        Raises `FedsimError` for a depth that the table does not have.
        """
        if not self.is_table or tuple(depths) == self.depths:
            return self
        missing = [depth for depth in depths if depth not in self.depths]
        if missing:
            raise FedsimError(
                f"layer profile {self.measure!r}: there is no column for {missing[0]} bits, only "
                f"for {', '.join(map(str, self.depths))}; measure at the legal depths"
            )
        columns = [self.depths.index(depth) for depth in depths]
        return LayerProfile(self.values[:, columns], self.measure, tuple(depths))

    def with_values(self, flat: np.ndarray) -> LayerProfile:
        """Return a profile of this shape and measure with other values, in the order of `flat`."""
        values = np.asarray(flat, np.float64).reshape(self.values.shape)
        return LayerProfile(values, self.measure, self.depths)


def profile_of(
    flat: Sequence[float] | np.ndarray, measure: str, depths: Sequence[int] = ()
) -> LayerProfile:
    """Return the profile whose `flat` values these are.

    Raises `FedsimError` if the number of values is not a multiple of the number of depths, and for
    values that are not finite.
    """
    values = np.asarray(flat, np.float64)
    if depths:
        if values.size % len(depths):
            raise FedsimError(
                f"layer profile {measure!r}: {values.size} values do not fill rows of "
                f"{len(depths)} bit depths; give one value per layer and depth"
            )
        values = values.reshape(-1, len(depths))
    return LayerProfile(values, measure, tuple(depths))
