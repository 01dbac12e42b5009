"""The exact plan by a table of losses, against all plans and against an integer program."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quant_toys import thorough
from scipy.optimize import LinearConstraint, milp

from fedsim.errors import BudgetError, FedsimError
from fedsim.quant.allocation import Sizes, allocate, smallest
from fedsim.quant.knapsack import WHOLE_FRONT_AFTER, Problem, in_units, knapsack
from fedsim.quant.packing import packed_bytes
from fedsim.quant.profile import LayerProfile

DEPTHS = (2, 3, 4, 8)
PLANS = np.array([*product(range(4), repeat=5)])  # all plans of five layers and four depths
CTC = [25_600, 147_456, *[36_864] * 7, 147_456, *[36_864] * 4, 147_456, 147_456] * 3
WHISPER = [80 * 512 * 3, *[512 * 512] * 60, *[512 * 2048] * 24, 512 * 512 * 3, *[512 * 512] * 12]


def sizes_of(n_weights, depths=DEPTHS, fixed=100) -> Sizes:
    table = [[packed_bytes(n, depth) for depth in depths] for n in n_weights]
    return Sizes(tuple(depths), np.array(table, np.int64), fixed)


def exact(table, sizes, budget) -> tuple[int, ...]:
    return knapsack(np.asarray(table, float), sizes, budget, np.random.default_rng(0))


def best_of_all(losses, sizes, budget):
    """The least loss, then the fewest bytes, then more bits in earlier layers; None: none fits."""
    layers = np.arange(5)
    n_bytes = sizes.fixed_bytes + sizes.layer_bytes[layers, PLANS].sum(axis=1)
    totals = losses[layers, PLANS].sum(axis=1)
    order = np.lexsort((*-PLANS.T[::-1], n_bytes, totals))
    fits = order[n_bytes[order] <= budget]
    return tuple(DEPTHS[column] for column in PLANS[fits[0]]) if len(fits) else None


def table_of(rng, kind) -> np.ndarray:
    """A table (5, 4) whose sums are exact in float64, of which ties are common or rare."""
    if kind == "ties":
        return rng.integers(-1, 4, (5, 4)).astype(float)
    falling = 4.0 ** -np.arange(4) * rng.uniform(0.1, 1, (5, 1))
    noise = rng.normal(0, 0.3 if kind == "noisy" else 0.01, (5, 4))
    return np.round((falling + noise) * 2**30) / 2**30


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = draw(st.sampled_from([[8] * 5, [40, 40, 80, 80, 8], None]))
    sizes = sizes_of(rng.integers(1, 400, 5) if weights is None else weights)
    table = table_of(rng, draw(st.sampled_from(["ties", "noisy", "falling"])))
    budget = int(rng.integers(smallest(sizes) - 3, sizes.total([8] * 5) + 5))
    return table, sizes, budget


@thorough
@given(problems())
def test_it_is_the_best_of_all_plans(problem):
    table, sizes, budget = problem
    expected = best_of_all(table, sizes, budget)
    if expected is None:
        with pytest.raises(BudgetError, match=f"{smallest(sizes):,} bytes"):
            exact(table, sizes, budget)
        return
    bits = exact(table, sizes, budget)
    assert bits == expected
    assert all(type(depth) is int for depth in bits)


@thorough
@given(problems())
def test_the_plans_of_all_budgets_at_once_are_the_same(problem):
    table, sizes, _ = problem
    asked = Problem(table, sizes.layer_bytes)
    front = asked.front()
    for i, (n_bytes, columns) in enumerate(
        zip(front.layer_bytes, front.columns(np.arange(len(front.losses))), strict=True)
    ):
        assert front.columns(i).tolist() == columns.tolist()
        assert sizes.layer_bytes[np.arange(5), columns].sum() == n_bytes
    for budget in np.linspace(smallest(sizes), sizes.total([8] * 5) + 2, 25).astype(int).tolist():
        expected = best_of_all(table, sizes, budget)
        columns = asked.best(budget - sizes.fixed_bytes)
        assert tuple(DEPTHS[column] for column in columns) == expected
        # More budget never gives a worse total (nor a smaller file): the front falls.
    assert (np.diff(front.losses) < 0).all()
    assert (np.diff(front.layer_bytes) > 0).all()


def test_by_hand():
    # 8 weights: as many bytes as bits. Losses at 2, 4, 8 bits; the budget leaves 6 bytes beyond
    # 2 bits everywhere: to 8 bits one layer, or to 4 bits all three.
    sizes = sizes_of([8, 8, 8], (2, 4, 8), fixed=0)
    table = [[9, 4, 0], [5, 4, 3], [5, 4, 3]]
    assert exact(table, sizes, 12) == (8, 2, 2)  # 0 + 5 + 5, against 4 + 4 + 4
    assert exact(table, sizes, 11) == (4, 4, 2)  # 4 + 4 + 5, as is (4, 2, 4)
    assert exact(table, sizes, 13) == (8, 2, 2)  # one byte more helps nobody
    assert exact(table, sizes, 14) == (8, 4, 2)
    # More bits that lose more are not taken, however large the budget.
    assert exact([[3, 1, 2], [1, 1, 1], [0, 0, -1]], sizes, 10_000) == (4, 2, 8)
    assert exact([[3.0], [2.0], [1.0]], sizes_of([8, 8, 8], (4,), 0), 12) == (4, 4, 4)


def test_equal_totals():
    sizes = sizes_of([8, 8, 8], (2, 4, 8), fixed=0)
    # The smaller file first; then more bits in the earlier layer.
    assert exact(np.zeros((3, 3)), sizes, 10_000) == (2, 2, 2)
    assert exact([[2, 1, 1]] * 3, sizes, 8) == (4, 2, 2)
    assert exact([[2, 1, 1]] * 3, sizes, 10) == (4, 4, 2)
    # Layers of a weight or two: the same bytes at several depths.
    assert exact([[5, 4, 3], [1, 1, 1]], sizes_of([1, 1], (2, 4, 8), 0), 2) == (8, 8)


def test_units_are_whole():
    values = np.array([3.0, -0.75, 2.0**-40, 0.0])
    units = in_units(values, 64)
    assert units.dtype == np.int64
    assert (units[0] // 3 * np.array([3, -0.75]) == units[:2]).all()
    assert units[2] * 2**40 * 3 == units[0]
    assert abs(int(units[0])) * 64 < 2**61
    for top in (1e-320, 1e-30, 1e300):
        assert (in_units(np.array([top, -top / 2, 0.0]), 99) != 0).tolist() == [True, True, False]
    assert in_units(np.zeros(3), 5).tolist() == [0, 0, 0]


def model_table(rng, layers, depths, noise=0.3) -> np.ndarray:
    """Losses as models have them: a few large ones, falling by a factor per bit, with noise."""
    base = rng.normal(-6, 1.5, (layers, 1)) - 1.3 * np.arange(depths)
    return np.exp(base + rng.normal(0, noise, (layers, depths)))


def integer_program(table, layer_bytes, budget) -> float:
    """The least total within the budget, by branch and bound (HiGHS), of a table of about 1."""
    layers, depths = table.shape
    one_each = np.kron(np.eye(layers), np.ones(depths))
    chosen = milp(
        table.reshape(-1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(layer_bytes.reshape(1, -1) / budget, -np.inf, 1),
        ],
        bounds=(0, 1),
        integrality=np.ones(table.size),
        options={"mip_rel_gap": 0},
    )
    picked = chosen.x.reshape(table.shape).argmax(axis=1)
    each = np.arange(layers)
    assert layer_bytes[each, picked].sum() <= budget
    return float(table[each, picked].sum())


@pytest.mark.parametrize(
    ("n_weights", "depths"), [(CTC[:41], range(2, 9)), (WHISPER[:99], range(2, 17))]
)
def test_an_integer_program_finds_nothing_better(n_weights, depths):
    rng, sizes = np.random.default_rng(19), sizes_of(n_weights, depths, fixed=0)
    each, least = np.arange(len(n_weights)), smallest(sizes)
    for part in (0.03, 0.2, 0.4):
        budget = int(least + part * (sizes.total([depths[-1]] * len(each)) - least))
        table = model_table(rng, len(each), len(depths))
        bits = np.array(exact(table, sizes, budget))
        assert sizes.total(bits) <= budget
        total = table[each, bits - 2].sum()
        found = integer_program(table / total, sizes.layer_bytes, budget)
        assert found == pytest.approx(1, rel=1e-5)  # as near as its tolerances let it come
        assert found >= 1 - 1e-12


@pytest.mark.parametrize("kind", ["smooth", "rough", "few values", "zeros", "wide"])
def test_pruned_and_whole_agree_on_models(kind):
    rng, sizes = np.random.default_rng(3), sizes_of(CTC[:41], range(2, 9), fixed=0)
    table = {
        "smooth": model_table(rng, 41, 7, 0),
        "rough": model_table(rng, 41, 7, 2),
        "few values": rng.integers(0, 3, (41, 7)).astype(float),
        "zeros": np.zeros((41, 7)),
        "wide": model_table(rng, 41, 7) ** 3,
    }[kind]
    budgets = rng.integers(smallest(sizes), sizes.total([8] * 41), WHOLE_FRONT_AFTER)
    asked = Problem(table, sizes.layer_bytes)
    one_by_one = [asked.best(int(budget)).tolist() for budget in budgets]
    assert [asked.best(int(budget)).tolist() for budget in budgets] == one_by_one
    front = asked.front()
    for budget, columns in zip(budgets, one_by_one, strict=True):
        last = int(np.flatnonzero(front.layer_bytes <= budget)[-1])
        assert front.columns(last).tolist() == columns


def test_by_name_at_the_legal_depths():
    table = LayerProfile(np.array([[9.0, 4, 0], [5, 4, 3]]), "loss", (2, 4, 8))
    sizes = sizes_of([8, 8], (2, 8), fixed=0)
    assert allocate("knapsack", table, sizes, 10) == (8, 2)
    assert allocate("knapsack", table, sizes_of([8, 8], (2, 4), 0), 7) == (4, 2)
    with pytest.raises(FedsimError, match="no column for 3 bits"):
        allocate("knapsack", table, sizes_of([8, 8], (2, 3), 0), 10)
    with pytest.raises(BudgetError, match="4 bytes"):
        allocate("knapsack", table, sizes, 3)
    with pytest.raises(FedsimError, match="reads one value per layer and bit depth, but"):
        allocate("knapsack", LayerProfile(np.ones(2), "median"), sizes, 10)
    with pytest.raises(FedsimError, match="knapsack does not order the layers: remove order"):
        allocate("knapsack", table, sizes, 10, order="ascending")
    # The table is a cache's key by its content: another table is another problem.
    table.values[0, 2] = 20
    assert allocate("knapsack", table, sizes, 10) == (2, 8)
