"""What a device reports about its model's layers: one value per layer, or per layer and depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.errors import FedsimError


@dataclass(frozen=True, eq=False)
class LayerProfile:
    """A vector (L,) of sensitivities, or a table (L, D) of losses at D bit depths and its pairs.

    Raises `FedsimError` for values of another shape and for values that are not finite.
    """

    values: np.ndarray
    """float64, (L,) or (L, D)."""
    measure: str
    """Name of what was measured."""
    depths: tuple[int, ...] = ()
    """Bit depths of a table's columns, ascending; empty for a vector."""
    pairs: np.ndarray | None = None
    """float64 (L*D, L*D): what two entries of a table, in the order of `flat`, cost beyond the sum
    of both: half the product u_i . u_j of the perturbations of the network's output. Read for two
    different layers only; see `form`. None where it was not measured, and for a vector."""

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
        if self.pairs is not None:
            self._check_pairs(self.pairs)

    def _check_pairs(self, pairs: np.ndarray) -> None:
        entries = self.values.size
        if not self.depths or pairs.shape != (entries, entries):
            raise FedsimError(
                f"layer profile {self.measure!r}: pairs of shape {pairs.shape} do not fit values "
                f"of shape {self.values.shape}; give a table, and a row and a column for each of "
                f"its entries"
            )
        if not np.isfinite(pairs).all():
            first, second = np.argwhere(~np.isfinite(pairs))[0] // len(self.depths)
            raise FedsimError(
                f"layer profile {self.measure!r}: the pair of layers {first} and {second} is not "
                f"finite; give finite values"
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
        pairs = self.pairs
        if pairs is not None:
            rows = (np.arange(self.layers)[:, None] * len(self.depths) + columns).reshape(-1)
            pairs = pairs[np.ix_(rows, rows)]
        return LayerProfile(self.values[:, columns], self.measure, tuple(depths), pairs)

    def form(self) -> np.ndarray:
        """Return F, float64 (L*D, L*D): a plan costs x' F x, x its one-hot choice of entries.

        The diagonal is the table, which was measured, and not the second-order |u_i|^2 / 2 that
        `pairs` has there; elsewhere F is `pairs`. Both agree where `pairs` was scaled to the table:
        u_i times sqrt(2 loss_i) / |u_i|.

        Raises `FedsimError` for a profile without pairs.
        """
        if self.pairs is None:
            raise FedsimError(
                f"layer profile {self.measure!r} has no pairs; measure them with the table"
            )
        form = np.array(self.pairs, np.float64)
        np.fill_diagonal(form, self.flat)
        return form

    def with_values(self, flat: np.ndarray) -> LayerProfile:
        """Return a profile of this shape and measure with other values, in the order of `flat`.

        It has no `pairs`: values that were changed to be released go without what was not.
        """
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
