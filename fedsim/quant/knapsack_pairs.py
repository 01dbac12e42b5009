"""A plan by losses with cross terms: local search around the exact plans without them.

What two layers lose together differs from the sum of what each loses alone, by the product of the
perturbations that they cause in the network's output. The total is a quadratic form x' F x, x the
one-hot choice of a depth for each layer: the diagonal of F is the table of losses, the rest are the
cross terms (`LayerProfile.form`). Its least is hard to find; this allocator gives a plan that is
never worse than the exact one without cross terms (`knapsack`), and never a worse one for more
budget.

Both hold by construction. The candidates do not depend on the budget: all plans that are best for
some budget without cross terms (`Problem.front`), and what local search makes of them. The plan for
a budget is the best candidate that fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedsim.quant.knapsack import in_units, problem_of
from fedsim.quant.profile import LayerProfile
from fedsim.quant.sizes import Sizes, smallest, too_small

STARTS = 256
"""Plans from which local search starts, evenly among those of the front; all if they are fewer."""
_PROFILES = 16
"""Candidates that are remembered: of one profile, for each set of legal depths and sizes."""
_SWAPS = ((1, 1), (1, 2), (2, 1), (2, 2))
"""By how many columns one layer of a pair goes up, and the other down."""


def knapsack_pairs(
    profile: LayerProfile, sizes: Sizes, budget: int, rng: np.random.Generator
) -> tuple[int, ...]:
    """The least total with cross terms, among the candidates that fit.

    Among candidates of equal total, the smallest file; among these the one with more bits in the
    first layer in which they differ. Candidates are made once for each profile (this object, not
    its content) and sizes: in seconds, of which clients of one public profile notice nothing.

    Raises:
        BudgetError: when not even the smallest depths fit.
        FedsimError: for a profile without pairs, or without one of the legal depths.
    """
    if smallest(sizes) > budget:
        raise too_small(sizes, budget)
    layer_bytes = np.ascontiguousarray(sizes.layer_bytes, np.int64)
    n_bytes, plans = _candidates(profile, sizes.depths, layer_bytes.tobytes())
    last = int(np.searchsorted(n_bytes, budget - sizes.fixed_bytes, side="right")) - 1
    return tuple(int(sizes.depths[column]) for column in plans[last])


@lru_cache(maxsize=_PROFILES)
def _candidates(
    profile: LayerProfile, depths: tuple[int, ...], layer_bytes: bytes
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes (N,), ascending, and columns (N, L) of plans of which each is better than
    all that are smaller."""
    legal = profile.at(depths)
    sizes = Sizes(depths, np.frombuffer(layer_bytes, np.int64).reshape(legal.layers, -1), 0)
    front = problem_of(legal.values, sizes).front()
    plans, n_front = front.columns(np.arange(len(front.losses))), front.layer_bytes
    quadratic = _Quadratic.of(legal.form(), sizes.layer_bytes)
    starts = np.unique(np.linspace(0, len(plans) - 1, STARTS).round().astype(int))
    # Each may fill the gap up to the next one.
    room = [*n_front[starts[1:]].tolist(), int(sizes.layer_bytes[:, -1].sum())]
    found = [quadratic.improved(plans[i], n) for i, n in zip(starts, room, strict=True)]
    plans = np.concatenate([plans, found])
    n_bytes, totals = quadratic.bytes_of(plans), quadratic.totals(plans)
    order = np.lexsort((*-plans.T[::-1], totals, n_bytes))
    totals = totals[order]
    better = np.ones(len(order), bool)
    better[1:] = totals[1:] < np.minimum.accumulate(totals)[:-1]
    kept = order[better]
    return n_bytes[kept], plans[kept]


@dataclass(frozen=True)
class _Quadratic:
    """The total of every plan, in whole units: sums are exact, in whatever order."""

    own: np.ndarray
    """Losses of single entries, int64 (L, D)."""
    cross: np.ndarray
    """What two entries of different layers add, int64 (L*D, L*D), symmetric; otherwise 0."""
    layer_bytes: np.ndarray
    """int64 (L, D)."""

    @classmethod
    def of(cls, form: np.ndarray, layer_bytes: np.ndarray) -> _Quadratic:
        layers, depths = layer_bytes.shape
        whole = in_units(form, layers**2)
        cross = whole + whole.T
        each = np.arange(layers)
        cross.reshape(layers, depths, layers, depths)[each, :, each, :] = 0
        return cls(np.diag(whole).reshape(layers, depths), cross, layer_bytes)

    def bytes_of(self, plans: np.ndarray) -> np.ndarray:
        """Return the bytes (N,) of the layers of plans (N, L)."""
        return self.layer_bytes[np.arange(plans.shape[1]), plans].sum(axis=1)

    def totals(self, plans: np.ndarray) -> np.ndarray:
        """Return the totals (N,) of plans (N, L)."""
        each = np.arange(plans.shape[1])
        entries = each * self.own.shape[1] + plans
        totals = self.own[each, plans].sum(axis=1)
        for layer in range(1, plans.shape[1]):  # memory stays at N * L
            totals += self.cross[entries[:, layer, None], entries[:, :layer]].sum(axis=1)
        return totals

    def improved(self, plan: np.ndarray, budget: int) -> np.ndarray:
        """Return the columns (L,) at which no step of one layer and no swap of two is better.

        Within `budget` bytes, which `plan` (L,) keeps. The best step is taken, again and again;
        where there is none, the best swap.
        """
        plan, depths = plan.copy(), self.own.shape[1]
        each = np.arange(len(plan))
        # (L, D): what each entry would cost, given the depths of all other layers.
        given = self.own + self.cross[:, each * depths + plan].sum(axis=1).reshape(self.own.shape)
        while True:
            change = given - given[each, plan][:, None]
            extra = self.layer_bytes - self.layer_bytes[each, plan][:, None]
            room = budget - int(self.layer_bytes[each, plan].sum())
            fitting = np.where(extra <= room, change, 0)
            best = int(fitting.argmin())
            steps = [divmod(best, depths)] if fitting.flat[best] < 0 else []
            steps = steps or self._best_swap(plan, change, extra, room)
            if not steps:
                return plan
            for layer, column in steps:
                old, new = layer * depths + plan[layer], layer * depths + column
                given += (self.cross[new] - self.cross[old]).reshape(given.shape)
                plan[layer] = column

    def _best_swap(
        self, plan: np.ndarray, change: np.ndarray, extra: np.ndarray, room: int
    ) -> list[tuple[int, int]]:
        """Return two (layer, column), of which one goes up and one down; [] if none is better."""
        depths, least, found = self.own.shape[1], 0, []
        for rise, fall in _SWAPS:
            up, down = np.flatnonzero(plan + rise < depths), np.flatnonzero(plan >= fall)
            if not len(up) or not len(down):
                continue
            higher, lower = plan[up] + rise, plan[down] - fall
            old_up, old_down = up * depths + plan[up], down * depths + plan[down]
            new_up, new_down = old_up + rise, old_down - fall
            together = (
                self.cross[np.ix_(new_up, new_down)]
                - self.cross[np.ix_(new_up, old_down)]
                - self.cross[np.ix_(old_up, new_down)]
                + self.cross[np.ix_(old_up, old_down)]
            )
            both = change[up, higher][:, None] + change[down, lower] + together
            fits = extra[up, higher][:, None] + extra[down, lower] <= room
            both[~fits | (up[:, None] == down)] = 0
            best = int(both.argmin())
            if both.flat[best] < least:
                least = int(both.flat[best])
                i, j = divmod(best, len(down))
                found = [(int(up[i]), int(higher[i])), (int(down[j]), int(lower[j]))]
        return found
