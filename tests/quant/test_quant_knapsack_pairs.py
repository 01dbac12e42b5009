"""Plans with cross terms: by what they promise, and against all plans of small models."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples
from quant_toys import thorough

from fedsim.errors import BudgetError, FedsimError
from fedsim.quant.allocation import Sizes, allocate, smallest
from fedsim.quant.packing import packed_bytes
from fedsim.quant.profile import LayerProfile

DEPTHS = (2, 3, 4, 8)
PLANS = np.array([*product(range(4), repeat=5)])


def sizes_of(n_weights, depths=DEPTHS, fixed=100) -> Sizes:
    table = [[packed_bytes(n, depth) for depth in depths] for n in n_weights]
    return Sizes(tuple(depths), np.array(table, np.int64), fixed)


def perturbed(rng, layers, depths, correlation, directions=12) -> LayerProfile:
    """The profile of a network whose output moves by the sum of what its layers do to it."""
    common = rng.normal(size=(layers, 1, directions)) + correlation * rng.normal(size=directions)
    moves = common + 0.5 * rng.normal(size=(layers, len(depths), directions))
    moves *= (rng.uniform(0.2, 1, layers)[:, None] * 2.0 ** -np.array(depths))[..., None]
    flat = moves.reshape(-1, directions)
    pairs = flat @ flat.T / 2
    return LayerProfile(np.diag(pairs).reshape(layers, -1).copy(), "loss", tuple(depths), pairs)


def predicted(profile, columns) -> float:
    """The loss of a plan, entry by entry: the table's, and both orders of every pair."""
    entries = [layer * len(profile.depths) + column for layer, column in enumerate(columns)]
    total = sum(profile.flat[i] for i in entries)
    return total + sum(profile.pairs[i, j] for i in entries for j in entries if i != j)


def columns_of(bits, depths=DEPTHS) -> list[int]:
    return [depths.index(depth) for depth in bits]


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = sizes_of(rng.integers(1, 400, 5))
    profile = perturbed(rng, 5, DEPTHS, draw(st.sampled_from([0, 1, 3])))
    if draw(st.booleans()):  # any numbers, pairs of which outweigh the table; sums are exact
        pairs = rng.integers(-4, 5, (20, 20)).astype(float)
        profile = LayerProfile(rng.integers(-2, 9, (5, 4)).astype(float), "loss", DEPTHS, pairs)
    return profile, sizes, rng.integers(smallest(sizes), sizes.total([8] * 5) + 5, 4)


@settings(thorough, max_examples=examples(60))
@given(problems())
def test_never_worse_than_without_pairs_nor_for_more_budget(problem):
    profile, sizes, budgets = problem
    before, rounding = np.inf, 1e-12 * np.abs(profile.pairs).sum()
    for budget in sorted(budgets.tolist()):
        bits = allocate("knapsack_pairs", profile, sizes, budget)
        assert sizes.total(bits) <= budget
        assert all(type(depth) is int for depth in bits)
        total = predicted(profile, columns_of(bits))
        alone = allocate("knapsack", profile, sizes, budget)
        assert total <= predicted(profile, columns_of(alone)) + rounding
        assert total <= before + rounding
        before = total
    again = LayerProfile(profile.values, "loss", DEPTHS, profile.pairs)  # nothing is random
    assert allocate("knapsack_pairs", again, sizes, budget) == bits


def test_how_often_it_is_the_best_of_all_plans():
    rng, found, alone = np.random.default_rng(19), [], []
    for _ in range(60):
        sizes = sizes_of(rng.integers(50, 400, 5))
        profile = perturbed(rng, 5, DEPTHS, 1)
        budget = int(rng.integers(smallest(sizes), sizes.total([4] * 5)))
        fits = sizes.fixed_bytes + sizes.layer_bytes[np.arange(5), PLANS].sum(axis=1) <= budget
        entries = np.arange(5) * 4 + PLANS[fits]
        form = profile.pairs  # its diagonal is the table here
        least = form[entries[:, :, None], entries[:, None, :]].sum(axis=(1, 2)).min()
        for name, hits in (("knapsack_pairs", found), ("knapsack", alone)):
            bits = allocate(name, profile, sizes, budget)
            hits.append(predicted(profile, columns_of(bits)) / least)
    assert np.mean(np.array(found) < 1 + 1e-9) > 0.8
    assert np.mean(found) < np.mean(alone)


def test_two_layers_that_cancel():
    # 8 weights: a byte a bit. Alone, layer 2 suffers least from 2 bits; layers 0 and 1 at 2 bits
    # undo each other: 4 + 4 - 2 * 3.75 = 0.5, less than any other plan of 8 + 2 + 2 bytes.
    sizes = sizes_of([8, 8, 8], (2, 8), fixed=0)
    table, pairs = np.array([[4.0, 0], [4, 0], [1, 0]]), np.zeros((6, 6))
    pairs[0, 2] = pairs[2, 0] = -3.75
    profile = LayerProfile(table, "loss", (2, 8), pairs)
    assert allocate("knapsack", profile, sizes, 12) == (8, 2, 2)
    assert allocate("knapsack_pairs", profile, sizes, 12) == (2, 2, 8)
    # What a layer's own entries have to do with each other is never read.
    changed = pairs.copy()
    changed[0, 1] = changed[1, 1] = -100
    profile = LayerProfile(table, "loss", (2, 8), changed)
    assert allocate("knapsack_pairs", profile, sizes, 12) == (2, 2, 8)


def test_without_cross_terms_it_is_knapsack():
    rng = np.random.default_rng(1)
    for _ in range(20):
        sizes = sizes_of(rng.integers(1, 400, 5))
        table = rng.integers(0, 4, (5, 4)).astype(float)
        profile = LayerProfile(table, "loss", DEPTHS, np.zeros((20, 20)))
        for budget in rng.integers(smallest(sizes), sizes.total([8] * 5), 5).tolist():
            plan = allocate("knapsack", profile, sizes, budget)
            assert allocate("knapsack_pairs", profile, sizes, budget) == plan


def test_a_model_of_41_layers_gains():
    rng, depths = np.random.default_rng(5), tuple(range(2, 9))
    sizes = sizes_of([25_600, *[36_864, 147_456] * 20], depths, fixed=0)
    profile, each = perturbed(rng, 41, depths, 0.3, directions=60), range(41)
    ratios, before = [], np.inf
    for budget in np.linspace(smallest(sizes), sizes.total([6] * 41), 30).astype(int).tolist():
        plans = [allocate(name, profile, sizes, budget) for name in ("knapsack_pairs", "knapsack")]
        own, alone = (predicted(profile, [bits[i] - 2 for i in each]) for bits in plans)
        ratios.append(own / alone)
        assert own <= before
        before = own
    assert max(ratios) <= 1 + 1e-12
    assert np.mean(ratios) < 0.97


def test_wrong_input():
    rng = np.random.default_rng(2)
    profile = perturbed(rng, 2, (2, 4, 8), 1)
    sizes = sizes_of([8, 8], (2, 8), fixed=0)
    assert allocate("knapsack_pairs", profile, sizes, 16) == (8, 8)
    assert allocate("knapsack_pairs", profile, sizes, 4) == (2, 2)
    with pytest.raises(BudgetError, match="4 bytes"):
        allocate("knapsack_pairs", profile, sizes, 3)
    with pytest.raises(FedsimError, match="no column for 3 bits"):
        allocate("knapsack_pairs", profile, sizes_of([8, 8], (2, 3), 0), 10)
    table = LayerProfile(profile.values, "loss", (2, 4, 8))
    with pytest.raises(
        FedsimError, match=r"cross terms of every two, but measure 'loss' gives one v"
    ):
        allocate("knapsack_pairs", table, sizes, 10)
    with pytest.raises(FedsimError, match="remove order 'ascending'"):
        allocate("knapsack_pairs", profile, sizes, 10, order="ascending")
    assert allocate("knapsack", profile, sizes, 16) == (8, 8)  # reads the table alone
    with pytest.raises(FedsimError, match="'myqasr' reads one value per layer, but"):
        allocate("myqasr", profile, sizes, 10)
