"""The exact plan by a table of losses: a multiple-choice knapsack over exact sizes.

One bit depth is chosen for each layer; losses add up, and so do bytes. The problem and its bound by
Lagrange's dual: Kellerer, Pferschy, Pisinger, Knapsack Problems (2004), chapter 11; as a plan for
bit depths: HAWQ-V3 (Yao et al. 2021).

Losses are counted in whole multiples of one power of two, fine enough for a float64 and coarse
enough for sums of int64 not to overflow: so totals are exact, and equal totals are equal whatever
the order of the sum. Among plans of the least total, the smallest file is chosen; among these the
one with more bits in the first layer in which they differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedsim.quant.sizes import Sizes, smallest, too_small

WHOLE_FRONT_AFTER = 16
"""Budgets of one table after which the best plans of all budgets are made together, in the time of
about so many: then 10,000 clients of one public table cost 10,000 look-ups. The plans are equal."""
_TABLES = 16
"""Tables that are remembered: one for each set of legal depths and each language, at least."""


def knapsack(
    losses: np.ndarray, sizes: Sizes, budget: int, rng: np.random.Generator
) -> tuple[int, ...]:
    """The least total of a table of losses (L, D) within the budget, exactly.

    Raises `BudgetError` when not even the smallest depths fit.
    """
    if smallest(sizes) > budget:
        raise too_small(sizes, budget)
    columns = problem_of(losses, sizes).best(budget - sizes.fixed_bytes)
    return tuple(int(sizes.depths[column]) for column in columns)


@dataclass(frozen=True)
class Front:
    """Plans of which none is both smaller and better than another."""

    layer_bytes: np.ndarray
    """Bytes of the layers of each plan, int64 (N,), ascending."""
    losses: np.ndarray
    """Total of each, int64 (N,), in the problem's unit, descending."""
    _base: np.ndarray
    """Columns (L,) of the layers without a choice; any of the others."""
    _trail: list[tuple[int, np.ndarray, np.ndarray]]
    """The layers with a choice, the last first: number, and of each state its column and its state
    of the layers behind."""

    def columns(self, chosen: int | np.ndarray) -> np.ndarray:
        """Return the columns (L,) of one plan, or (n, L) of n of them."""
        state = np.asarray(chosen)
        columns = np.broadcast_to(self._base, (*state.shape, len(self._base))).copy()
        for layer, column, behind in reversed(self._trail):
            columns[..., layer] = column[state]
            state = behind[state]
        return columns


@dataclass(frozen=True)
class _Bound:
    """What a plan must keep to be of interest.

    The loss of any plan of s bytes within the budget is what all layers cost at the least at this
    price of a byte, less price * budget (Lagrange's bound); plus what its columns cost above that;
    plus price * (budget - s). What is above the bound must be at most `gap`.
    """

    price: float
    cheapest: np.ndarray
    """float64 (L,): the least of loss + price * bytes of each layer."""
    gap: float
    """At least the distance of a known plan, and more by what rounding of floats can amount to."""
    budget: int


class Problem:
    """One table of losses with the bytes of its entries, for any number of budgets."""

    def __init__(self, losses: np.ndarray, layer_bytes: np.ndarray) -> None:
        """Take losses, float64 (L, D), and bytes, int64 (L, D), that do not fall with depth."""
        self.losses = in_units(losses, len(losses))
        self.layer_bytes = layer_bytes
        self._rows = np.arange(len(losses))
        self._asked = 0
        self._front: Front | None = None

    def best(self, budget: int) -> np.ndarray:
        """Return the columns (L,) of the best plan whose layers take at most `budget` bytes.

        There is one: the first column fits.
        """
        self._asked += 1
        if self._asked > WHOLE_FRONT_AFTER:
            front = self.front()
            last = int(np.searchsorted(front.layer_bytes, budget, side="right")) - 1
            return front.columns(last)
        return self._one(budget)

    def front(self) -> Front:
        """Return the best plans of all budgets."""
        if self._front is None:
            self._front = self._enumerate(np.ones(self.losses.shape, bool), None)
        return self._front

    def _one(self, budget: int) -> np.ndarray:
        """Bound the optimum from both sides, then enumerate what lies between."""
        columns, price = self._rounded_down(budget)
        known = float(self._filled(columns, budget))
        priced = self.losses + price * self.layer_bytes
        cheapest = priced.min(axis=1)
        least = float(cheapest.sum()) - price * budget
        largest = np.abs(self.losses).max(axis=1).sum(dtype=float)
        slack = 2.0**-40 * (largest + price * (budget + float(self.layer_bytes[:, -1].sum())))
        gap = max(known - least, 0.0) + slack
        bound = _Bound(price, cheapest, gap, budget)
        front = self._enumerate(priced - cheapest[:, None] <= gap, bound)
        return front.columns(len(front.losses) - 1)

    def _filled(self, columns: np.ndarray, budget: int) -> int:
        """Return the total after the best step of one layer that still fits, again and again."""
        columns, depths = columns.copy(), self.losses.shape[1]
        while True:
            extra = self.layer_bytes - self.layer_bytes[self._rows, columns][:, None]
            saved = self.losses[self._rows, columns][:, None] - self.losses
            room = budget - self.layer_bytes[self._rows, columns].sum()
            saved[extra > room] = 0
            best = int(saved.argmax())
            if saved.flat[best] <= 0:
                return int(self.losses[self._rows, columns].sum())
            columns[best // depths] = best % depths

    def _rounded_down(self, budget: int) -> tuple[np.ndarray, float]:
        """Return columns (L,) that fit, and the price of a byte at which the next step does not.

        The steps along the lower convex hulls of all layers, the steepest first: Dantzig's
        solution of the problem with fractions, with its last step left out.
        """
        columns = np.where(
            self.layer_bytes == self.layer_bytes[:, :1], self.losses, np.iinfo(np.int64).max
        ).argmin(axis=1)
        steps = list(self._hull_steps(columns))
        if not steps:
            return columns, 0.0
        layer, to, slope, extra = (np.concatenate(parts) for parts in zip(*steps, strict=True))
        order = np.argsort(-slope, kind="stable")
        size = self.layer_bytes[self._rows, columns].sum() + np.cumsum(extra[order])
        fits = int(np.searchsorted(size, budget, side="right"))
        columns = columns.copy()
        taken = order[:fits]
        np.maximum.at(columns, layer[taken], to[taken])  # the hull's columns ascend
        return columns, float(slope[order[fits]]) if fits < len(order) else 0.0

    def _hull_steps(self, columns: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield (layers, columns that they step to, loss saved per byte, bytes) of each step."""
        losses = self.losses.astype(float)
        while True:
            extra = self.layer_bytes - self.layer_bytes[self._rows, columns][:, None]
            saved = losses[self._rows, columns][:, None] - losses
            slope = np.where((extra > 0) & (saved > 0), saved / np.maximum(extra, 1), 0.0)
            steepest = slope.max(axis=1)
            live = np.flatnonzero(steepest > 0)
            if not len(live):
                return
            to = slope.shape[1] - 1 - (slope == steepest[:, None])[:, ::-1].argmax(axis=1)
            yield live, to[live], steepest[live], extra[live, to[live]]
            columns = np.where(steepest > 0, to, columns)

    def _enumerate(self, allowed: np.ndarray, bound: _Bound | None) -> Front:
        """Return the front of the plans of `allowed` entries (L, D) that keep the bound.

        Layers are added from the last to the first. Of states with equal bytes and loss, that with
        the larger column stays: so of equal plans, that with more bits in earlier layers.
        """
        base = allowed.argmax(axis=1)
        several = np.flatnonzero(allowed.sum(axis=1) > 1)
        once = np.ones(len(allowed), bool)
        once[several] = False
        total = self.layer_bytes[self._rows, base][once].sum(keepdims=True)
        loss = self.losses[self._rows, base][once].sum(keepdims=True)
        below, least_ahead, most_ahead = 0.0, 0, 0
        if bound is not None:
            below = float(bound.cheapest[once].sum())
            sizes = self.layer_bytes[several]
            ahead = np.where(allowed[several], sizes, np.iinfo(np.int64).max).min(axis=1)
            least_ahead = int(ahead.sum())
            most_ahead = int(np.where(allowed[several], sizes, 0).max(axis=1).sum())
        trail = []
        for layer in several[::-1].tolist():
            columns = allowed[layer].nonzero()[0][::-1]
            sizes, states = self.layer_bytes[layer, columns], len(total)
            total = (sizes[:, None] + total).reshape(-1)
            loss = (self.losses[layer, columns][:, None] + loss).reshape(-1)
            kept = np.arange(len(total))
            if bound is not None:
                below += float(bound.cheapest[layer])
                least_ahead -= int(sizes.min())
                most_ahead -= int(sizes.max())
                unused = np.maximum(bound.budget - most_ahead - total, 0)
                above = loss + bound.price * (total + unused) - below
                kept = ((above <= bound.gap) & (total <= bound.budget - least_ahead)).nonzero()[0]
                total, loss = total[kept], loss[kept]
            order = np.lexsort((loss, total))  # stable: larger columns first among equals
            total, loss = total[order], loss[order]
            better = np.ones(len(order), bool)
            better[1:] = loss[1:] < np.minimum.accumulate(loss)[:-1]
            total, loss, kept = total[better], loss[better], kept[order[better]]
            trail.append((layer, columns[kept // states], kept % states))
        return Front(total, loss, base, trail)


def in_units(values: np.ndarray, terms: int) -> np.ndarray:
    """Return int64 multiples of a power of two nearest to `values`, of which `terms` can be added.

    The unit is the smallest with which no such sum reaches 2^61. For up to 256 terms the largest
    value keeps all 53 bits of its fraction.
    """
    top = float(np.abs(values).max(initial=0.0))
    exponent = 61 - (terms - 1).bit_length() - int(np.frexp(top)[1])
    return np.rint(np.ldexp(values, exponent)).astype(np.int64)


def problem_of(losses: np.ndarray, sizes: Sizes) -> Problem:
    """Return the problem of a table of losses (L, D); the same one for the same content."""
    table = np.ascontiguousarray(losses, np.float64)
    layer_bytes = np.ascontiguousarray(sizes.layer_bytes, np.int64)
    return _problem(table.tobytes(), layer_bytes.tobytes(), len(layer_bytes))


@lru_cache(maxsize=_TABLES)
def _problem(losses: bytes, layer_bytes: bytes, layers: int) -> Problem:
    return Problem(
        np.frombuffer(losses, np.float64).reshape(layers, -1),
        np.frombuffer(layer_bytes, np.int64).reshape(layers, -1),
    )
