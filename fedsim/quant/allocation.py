"""Bit depths from sensitivities: Algorithm 1 of the paper, and what it is compared with.

Everything here is plain arrays: a sensitivity a_l per layer, a table of bytes per layer and bit
depth, a budget in bytes. Neither an allocator nor its tests need a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedsim.errors import FedsimError
from fedsim.quant.profile import LayerProfile
from fedsim.quant.sizes import Sizes, smallest, too_small
from fedsim.registry import Lazy, Registry

Plan = Callable[[Any, Sizes, int, np.random.Generator], tuple[int, ...]]
"""f(values, sizes, budget in bytes, generator) -> bit depth of each layer (L,).

The values are an array (L,), or (L, D) for an allocator that reads a table, at the legal depths;
for one that reads pairs the whole `LayerProfile`, which it may know from another client. Raises
`BudgetError` when not even the smallest depths fit."""


@dataclass(frozen=True)
class Allocator:
    """One way to give layers their bit depths."""

    plan: Plan
    summary: str
    meaning: str
    """What it does in a few plain words, for readers of a report."""
    reads: Literal["nothing", "order", "vector", "table", "pairs"] = "vector"
    """What it needs of a `LayerProfile`: nothing; only the order of the layers; one value per
    layer; one per layer and bit depth; or that and the cross terms of every two of them."""
    role: Literal["method", "baseline", "control"] = "method"
    """Its part in comparisons: a method; one depth for all layers; or a method with another order
    of the layers."""
    is_random: bool = False
    """Whether it draws random numbers, so that repeated draws differ."""

    @property
    def orders_layers(self) -> bool:
        """Whether layers lose bits by their place in an order, which can be reversed."""
        return self.reads in ("order", "vector")


PAPER = "myqasr"
"""The paper's allocator, with which the others are compared."""
ALLOCATORS: Registry[Allocator] = Registry("allocation")


def myqasr(
    sensitivity: np.ndarray, sizes: Sizes, budget: int, rng: np.random.Generator
) -> tuple[int, ...]:
    """Algorithm 1: sweep over the layers, largest value first, one bit each, until the model
    fits."""
    return _sweep(np.argsort(-sensitivity, kind="stable"), sizes, budget)


def reversed_(
    sensitivity: np.ndarray, sizes: Sizes, budget: int, rng: np.random.Generator
) -> tuple[int, ...]:
    """Control: Algorithm 1 with the order reversed (smallest value first)."""
    return _sweep(np.argsort(sensitivity, kind="stable"), sizes, budget)


def shuffled(
    sensitivity: np.ndarray, sizes: Sizes, budget: int, rng: np.random.Generator
) -> tuple[int, ...]:
    """Control: Algorithm 1 with the layers in a random order."""
    return _sweep(rng.permutation(len(sensitivity)), sizes, budget)


def uniform(
    sensitivity: np.ndarray, sizes: Sizes, budget: int, rng: np.random.Generator
) -> tuple[int, ...]:
    """The same bit depth for every layer, the largest that fits; part of the budget stays
    unused."""
    totals = sizes.fixed_bytes + sizes.layer_bytes.sum(axis=0)
    fits = np.flatnonzero(totals <= budget)
    if not len(fits):
        raise too_small(sizes, budget)
    return (int(sizes.depths[fits[-1]]),) * len(sensitivity)


def linear(
    sensitivity: np.ndarray, sizes: Sizes, budget: int, rng: np.random.Generator
) -> tuple[int, ...]:
    """Ablation: bits by min-max interpolation; the smallest value gets the most bits.

    b_l = c - t_l (c - floor), t_l = (a_l - min a) / (max a - min a), rounded down to a legal depth;
    c is the largest ceiling (a real number between the smallest and the largest depth) that fits.
    """
    spread = float(sensitivity.max() - sensitivity.min())
    t = (sensitivity - sensitivity.min()) / spread if spread > 0 else np.zeros(len(sensitivity))
    depths = np.asarray(sizes.depths)
    floor = float(depths[0])

    def at(ceiling: float) -> np.ndarray:
        wanted = ceiling - t * (ceiling - floor)
        return depths[np.searchsorted(depths, wanted + 1e-9, side="right") - 1]

    if sizes.total(at(floor).tolist()) > budget:
        raise too_small(sizes, budget)
    # Layer l reaches depth d at c = floor + (d - floor) / (1 - t_l): the size changes there only.
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = floor + (depths[None, :] - floor) / (1.0 - t[:, None])
    ceilings = np.unique(steps[np.isfinite(steps) & (steps <= depths[-1])])
    low, high = 0, len(ceilings) - 1  # the size grows with the ceiling: bisect over these values
    while low < high:
        middle = (low + high + 1) // 2
        if sizes.total(at(ceilings[middle]).tolist()) <= budget:
            low = middle
        else:
            high = middle - 1
    return tuple(int(depth) for depth in at(ceilings[low]))


ALLOCATORS.add(
    PAPER,
    Allocator(
        myqasr,
        summary="Algorithm 1: sweep over the layers, largest value first, one bit each, until the"
        " model fits.",
        meaning="layers give up bits by how they respond to the user's clips, until the model fits",
        reads="order",
    ),
)
ALLOCATORS.add(
    "reversed",
    Allocator(
        reversed_,
        summary="Control: Algorithm 1 with the order reversed (smallest value first).",
        meaning="myqasr with the order of the layers reversed",
        reads="order",
        role="control",
    ),
)
ALLOCATORS.add(
    "shuffled",
    Allocator(
        shuffled,
        summary="Control: Algorithm 1 with the layers in a random order.",
        meaning="as many bits as myqasr gives, but to random layers",
        reads="nothing",
        role="control",
        is_random=True,
    ),
)
ALLOCATORS.add(
    "uniform",
    Allocator(
        uniform,
        summary="The same bit depth for every layer, the largest that fits; part of the budget"
        " stays unused.",
        meaning="every layer has the same number of bits",
        reads="nothing",
        role="baseline",
    ),
)
ALLOCATORS.add(
    "linear",
    Allocator(
        linear,
        summary="Ablation: bits by min-max interpolation; the smallest value gets the most bits.",
        meaning="bits in proportion to how each layer responds to the user's clips",
    ),
)
ALLOCATORS.add(
    "knapsack",
    Allocator(
        Lazy("fedsim.quant.knapsack:knapsack"),
        summary="The least total loss that fits, by a table of the network's loss with each layer"
        " at each bit depth; exact.",
        meaning="bits go where the model's output suffers least from having fewer elsewhere",
        reads="table",
    ),
)
ALLOCATORS.add(
    "knapsack_pairs",
    Allocator(
        Lazy("fedsim.quant.knapsack_pairs:knapsack_pairs"),
        summary="knapsack with cross terms: what the errors of two layers add to or take from each"
        " other; by local search.",
        meaning="as knapsack, counting how the errors of two layers add up or cancel",
        reads="pairs",
    ),
)


def allocate(
    allocation: str,
    profile: LayerProfile | None,
    sizes: Sizes,
    budget: int,
    *,
    order: str = "descending",
    rng: np.random.Generator | None = None,
) -> tuple[int, ...]:
    """Return bit depths, one per layer, whose model file takes at most `budget` bytes.

    Args:
        allocation: name of an allocator.
        profile: what the device reports about its layers; may be None if the allocator reads
            nothing.
        sizes: bytes of each layer at each legal depth.
        budget: size of the largest file, in bytes.
        order: which layers lose bits first: those with the largest values ("descending") or with
            the smallest ("ascending").
        rng: for allocators that draw.

    Raises:
        BudgetError: if the smallest feasible file is larger than the budget.
        FedsimError: for an unknown name, a profile that is not what the allocator reads, or
            another order than "descending" where it does not order the layers.
    """
    chosen, layers = ALLOCATORS[allocation], len(sizes.layer_bytes)
    rng = rng or np.random.default_rng(0)
    if order not in ("descending", "ascending"):
        raise FedsimError(f"order is {order!r}: use 'descending' or 'ascending'")
    if chosen.reads == "nothing":
        return chosen.plan(np.zeros(layers), sizes, budget, rng)
    if profile is None:
        raise FedsimError(
            f"allocation {allocation!r} needs a layer profile and was given none; sense first"
        )
    _check_profile(allocation, chosen, profile, layers)
    if not chosen.orders_layers and order != "descending":
        raise FedsimError(f"{allocation} does not order the layers: remove order {order!r}")
    if chosen.reads == "pairs":
        return chosen.plan(profile, sizes, budget, rng)
    values = profile.at(sizes.depths).values
    return chosen.plan(values if order == "descending" else -values, sizes, budget, rng)


_SHAPES = {
    "vector": "one value per layer",
    "table": "one value per layer and bit depth",
    "pairs": "one value per layer and bit depth with the cross terms of every two",
}


def _check_profile(allocation: str, chosen: Allocator, profile: LayerProfile, layers: int) -> None:
    if profile.layers != layers:
        raise FedsimError(
            f"the layer profile has {profile.layers} layers and the model {layers}; sense with the "
            f"model that is planned"
        )
    wanted = chosen.reads if chosen.reads in ("table", "pairs") else "vector"
    given = "vector" if not profile.is_table else "table" if profile.pairs is None else "pairs"
    if wanted != given and (wanted, given) != ("table", "pairs"):
        raise FedsimError(
            f"allocation {allocation!r} reads {_SHAPES[wanted]}, but measure {profile.measure!r} "
            f"gives {_SHAPES[given]}; choose another measure or allocation"
        )


def mean_bits(bits: Sequence[int], n_weights: Sequence[int]) -> float:
    """Return the average bit depth (b-bar): the bits of all weights divided by their number."""
    return float(np.dot(bits, n_weights) / np.sum(n_weights))


def _sweep(order: np.ndarray, sizes: Sizes, budget: int) -> tuple[int, ...]:
    """Algorithm 1, lines 3-4, in closed form.

    Step s of the sweep takes layer order[s mod L] one legal depth down. The size after every step
    is a cumulative sum, so the first step that fits is found without a loop.
    """
    n_layers, n_depths = sizes.layer_bytes.shape
    saved = -np.diff(sizes.layer_bytes[order][:, ::-1], axis=1)  # (L, D-1), from the top depth down
    after = sizes.fixed_bytes + int(sizes.layer_bytes[:, -1].sum()) - np.cumsum(saved.T.reshape(-1))
    if smallest(sizes) > budget:
        raise too_small(sizes, budget)
    steps = 0
    if sizes.fixed_bytes + int(sizes.layer_bytes[:, -1].sum()) > budget:
        steps = int(np.flatnonzero(after <= budget)[0]) + 1
    sweeps, rest = divmod(steps, n_layers)
    taken = np.full(n_layers, sweeps)
    taken[order[:rest]] += 1
    return tuple(sizes.depths[n_depths - 1 - int(t)] for t in taken)
