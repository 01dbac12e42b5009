from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quant_toys import registered, thorough

from fedsim.base.units import MB
from fedsim.errors import BudgetError, FedsimError
from fedsim.quant import allocation
from fedsim.quant.allocation import ALLOCATORS, Allocator, Sizes, mean_bits, smallest
from fedsim.quant.packing import packed_bytes
from fedsim.quant.profile import profile_of

NAMES = ("myqasr", "reversed", "shuffled", "uniform", "linear")
DEPTHS = st.sampled_from([(4, 8), (8,), (2, 4, 8), (3, 5, 6, 16), tuple(range(2, 17))])


def allocate(name, values, sizes, budget, **options) -> tuple[int, ...]:
    """Plan from a vector of values."""
    return allocation.allocate(name, profile_of(values, "median"), sizes, budget, **options)


def sizes_of(n_weights, depths, fixed=100) -> Sizes:
    table = [[packed_bytes(n, d) for d in depths] for n in n_weights]
    return Sizes(tuple(depths), np.array(table, np.int64), fixed)


def bytes_of(bits, n_weights, fixed) -> int:
    return fixed + sum(-(-n * b // 8) for n, b in zip(n_weights, bits, strict=True))


def algorithm_1(order, n_weights, depths, fixed, budget):
    """The paper's lines, one bit at a time; None when the sweep runs out of depths."""
    bits = [depths[-1]] * len(n_weights)
    if bytes_of(bits, n_weights, fixed) <= budget:
        return tuple(bits)
    for lower in reversed(depths[:-1]):
        for layer in order:
            bits[layer] = lower
            if bytes_of(bits, n_weights, fixed) <= budget:
                return tuple(bits)
    return None


@st.composite
def problems(draw):
    depths = draw(DEPTHS)
    n_layers = draw(st.integers(1, 9))
    n_weights = draw(st.lists(st.integers(1, 400), min_size=n_layers, max_size=n_layers))
    # Few values: ties are common.
    values = draw(st.lists(st.integers(-3, 5), min_size=n_layers, max_size=n_layers))
    fixed = draw(st.integers(0, 50))
    least = bytes_of([depths[0]] * n_layers, n_weights, fixed)
    most = bytes_of([depths[-1]] * n_layers, n_weights, fixed)
    budget = draw(st.integers(least - 5, most + 5))
    return depths, n_weights, np.array(values, float), fixed, budget


def test_algorithm_1_by_hand():
    # Three layers of 80, 40 and 160 weights: 10, 5 and 20 bytes a bit; medians 0.5, 2.0, 1.0.
    # Largest median first: layers 1, 2, 0. Legal depths 2..4, 7 bytes besides, budget 100.
    #   all at 4:     7 + 40 + 20 + 80 = 147
    #   layer 1 -> 3: 142      layer 2 -> 3: 122      layer 0 -> 3: 112
    #   layer 1 -> 2: 107      layer 2 -> 2: 87 <= 100: stop. Bits 3, 2, 2.
    sizes = sizes_of([80, 40, 160], (2, 3, 4), fixed=7)
    medians = [0.5, 2.0, 1.0]
    assert allocate("myqasr", medians, sizes, 100) == (3, 2, 2)
    assert sizes.total((3, 2, 2)) == 87
    # Smallest median first: layers 0, 2, 1.
    #   147, layer 0 -> 3: 137, layer 2 -> 3: 117, layer 1 -> 3: 112,
    #   layer 0 -> 2: 102, layer 2 -> 2: 82: stop. Bits 2, 3, 2.
    assert allocate("myqasr", medians, sizes, 100, order="ascending") == (2, 3, 2)
    assert sizes.total((2, 3, 2)) == 82
    # The budget itself fits; a byte less does not.
    assert allocate("myqasr", medians, sizes, 107) == (3, 2, 3)
    assert allocate("myqasr", medians, sizes, 106) == (3, 2, 2)
    assert allocate("myqasr", medians, sizes, 147) == (4, 4, 4)
    assert allocate("myqasr", medians, sizes, 146) == (4, 3, 4)
    # 7 + 35 * 2 = 77: the least there is.
    assert allocate("myqasr", medians, sizes, 77) == (2, 2, 2)


def test_depths_with_gaps_by_hand():
    # 4 and 8 bits only: a layer gives up four bits at once. 8 weights: 8 or 4 bytes.
    sizes = sizes_of([8, 8, 8], (4, 8), fixed=0)
    assert allocate("myqasr", [3.0, 1.0, 2.0], sizes, 23) == (4, 8, 8)
    assert allocate("myqasr", [3.0, 1.0, 2.0], sizes, 19) == (4, 8, 4)
    assert allocate("myqasr", [3.0, 1.0, 2.0], sizes, 15) == (4, 4, 4)


@thorough
@given(
    problems(),
    st.sampled_from(["descending", "ascending"]),
    st.sampled_from(["myqasr", "reversed"]),
)
def test_the_closed_form_is_the_loop(problem, order, name):
    depths, n_weights, values, fixed, budget = problem
    sizes = sizes_of(n_weights, depths, fixed)
    largest_first = (name == "myqasr") == (order == "descending")
    # Ties in the order of the layers.
    sweep = sorted(
        range(len(values)), key=lambda i: (-values[i] if largest_first else values[i], i)
    )
    expected = algorithm_1(sweep, n_weights, depths, fixed, budget)
    if expected is None:
        with pytest.raises(BudgetError):
            allocate(name, values, sizes, budget, order=order)
        return
    assert allocate(name, values, sizes, budget, order=order) == expected


@thorough
@given(problems(), st.sampled_from(NAMES))
def test_what_every_allocator_keeps(problem, name):
    depths, n_weights, values, fixed, budget = problem
    sizes = sizes_of(n_weights, depths, fixed)
    least = bytes_of([depths[0]] * len(values), n_weights, fixed)
    if budget < least:
        with pytest.raises(BudgetError, match=f"{least:,} bytes"):
            allocate(name, values, sizes, budget)
        return
    bits = allocate(name, values, sizes, budget)
    assert len(bits) == len(values)
    assert all(type(b) is int and b in depths for b in bits)
    assert bytes_of(bits, n_weights, fixed) == sizes.total(bits) <= budget
    more = allocate(name, values, sizes, budget + 7)
    assert sizes.total(more) >= sizes.total(bits)
    if name != "linear":
        assert all(b >= a for a, b in zip(bits, more, strict=True))
    if name in ("myqasr", "reversed", "shuffled"):
        steps = [depths.index(b) for b in bits]
        assert max(steps) - min(steps) <= 1
        # It stops as soon as it fits: with any one bit given back it does not fit, or the sweep had
        # not yet taken it (a layer that gave up less than another).
        if max(steps) < len(depths) - 1 or min(steps) < max(steps):
            behind = [i for i, s in enumerate(steps) if s == min(steps)]
            restored = [
                sizes.total([depths[steps[j] + (i == j)] for j in range(len(bits))]) for i in behind
            ]
            assert max(restored) > budget
    if name == "uniform":
        assert len(set(bits)) == 1
        above = [d for d in depths if d > bits[0]]
        assert all(bytes_of([d] * len(bits), n_weights, fixed) > budget for d in above)


@thorough
@given(problems())
def test_ascending_is_reversed(problem):
    depths, n_weights, values, fixed, budget = problem
    sizes = sizes_of(n_weights, depths, fixed)
    budget = max(budget, smallest(sizes))
    ascending = allocate("myqasr", values, sizes, budget, order="ascending")
    assert ascending == allocate("reversed", values, sizes, budget)
    descending = allocate("myqasr", values, sizes, budget)
    assert descending == allocate("reversed", values, sizes, budget, order="ascending")
    assert descending == allocate("myqasr", -values, sizes, budget, order="ascending")


def test_shuffled_follows_its_seed_and_nothing_else():
    sizes = sizes_of([16] * 12, range(2, 17))
    budget = sizes.total([9] * 6 + [8] * 6)

    def plan(seed, values):
        return allocate("shuffled", values, sizes, budget, rng=np.random.default_rng(seed))

    rising, falling = np.arange(12.0), -np.arange(12.0)
    assert plan(1, rising) == plan(1, rising) == plan(1, falling)
    plans = {plan(seed, rising) for seed in range(20)}
    assert len(plans) > 10
    assert all(sorted(p) == [8] * 6 + [9] * 6 for p in plans)
    # Every layer is among those that keep the bit sooner or later.
    assert set(np.argwhere(np.array([*plans]) == 9)[:, 1].tolist()) == set(range(12))


def linear_at(ceiling, values, depths):
    """The formula of the ablation at one ceiling, one layer at a time."""
    low, high = min(values), max(values)
    bits = []
    for a in values:
        t = (a - low) / (high - low) if high > low else 0.0
        wanted = ceiling - t * (ceiling - depths[0])
        bits.append(max(d for d in depths if d <= wanted + 1e-9))
    return bits


@thorough
@given(problems(), st.sampled_from(["descending", "ascending"]))
def test_linear_is_the_best_ceiling_of_a_fine_grid(problem, order):
    depths, n_weights, values, fixed, budget = problem
    sizes = sizes_of(n_weights, depths, fixed)
    budget = max(budget, smallest(sizes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bits = allocate("linear", values, sizes, budget, order=order)
    signed = values if order == "descending" else -values
    # Medians are whole numbers here, so 1 - t is m / n with m <= n, n their spread: every ceiling
    # at which a layer gains bits is on this grid.
    parts = int(np.lcm.reduce(range(1, max(2, int(values.max() - values.min()) + 1))))
    fine = depths[0] + np.arange((depths[-1] - depths[0]) * parts + 1) / parts
    grid = (linear_at(c, signed, depths) for c in fine[::-1])
    assert list(bits) == next(g for g in grid if bytes_of(g, n_weights, fixed) <= budget)


def test_linear_by_hand():
    # Medians 0, 1, 2, 4: t = 0, 1/4, 1/2, 1. Ceiling 10, floor 2: 10, 8, 6, 2.
    sizes = sizes_of([8, 8, 8, 8], range(2, 17), fixed=0)
    assert allocate("linear", [0, 1, 2, 4], sizes, 10 + 8 + 6 + 2) == (10, 8, 6, 2)
    # 2 stays at the largest median whatever the budget; at ceiling 16: 16, 12.5, 9, 2.
    assert allocate("linear", [0, 1, 2, 4], sizes, 10_000) == (16, 12, 9, 2)
    assert allocate("linear", [5, 5, 5, 5], sizes, 36) == (9, 9, 9, 9)


def test_a_budget_below_the_smallest_file_names_its_size():
    sizes = sizes_of([3_000_000, 1_000_001], (3, 8), fixed=12_345)
    least = 12_345 + 1_125_000 + 375_001  # 3 bits: 375,000.375 -> 375,001 bytes
    assert smallest(sizes) == least
    for name in NAMES:
        with pytest.raises(BudgetError, match="raise the budget") as raised:
            allocate(name, [1.0, 2.0], sizes, least - 1)
        # 1,512,346 / 2^20 = 1.4423, rounded up: that budget is enough.
        for part in (f"{least - 1:,} bytes", f"{least:,} bytes", "3 bits", "1.45 MB"):
            assert part in str(raised.value)
        assert allocate(name, [1.0, 2.0], sizes, least) == (3, 3)
        assert allocate(name, [1.0, 2.0], sizes, int(1.45 * MB)) == (3, 3)


def test_a_profile_of_another_number_of_layers():
    for length in (0, 2, 4):
        with pytest.raises(FedsimError, match=f"{length} layers and the model 3; sense with"):
            allocate("myqasr", [1.0] * length, sizes_of([8, 8, 8], (4, 8)), 10_000)


def test_unknown_names_come_with_the_nearest():
    sizes = sizes_of([8], (4, 8))
    with pytest.raises(FedsimError, match="did you mean 'myqasr'"):
        allocate("myqsar", [1.0], sizes, 10_000)
    with pytest.raises(FedsimError, match="known: knapsack, knapsack_pairs, linear, myqasr, rev"):
        allocate("zzz", [1.0], sizes, 10_000)
    with pytest.raises(FedsimError, match=r"'up': use 'descending' or 'ascending'"):
        allocate("myqasr", [1.0], sizes, 10_000, order="up")


def test_what_every_allocator_reads_and_is():
    entries = {name: ALLOCATORS[name] for name in (*NAMES, "knapsack", "knapsack_pairs")}
    assert {n: (e.reads, e.role, e.is_random) for n, e in entries.items()} == {
        "myqasr": ("order", "method", False),
        "reversed": ("order", "control", False),
        "shuffled": ("nothing", "control", True),
        "uniform": ("nothing", "baseline", False),
        "linear": ("vector", "method", False),
        "knapsack": ("table", "method", False),
        "knapsack_pairs": ("pairs", "method", False),
    }
    described = ALLOCATORS.describe()
    assert set(described) >= set(NAMES)
    assert all(text.endswith(".") for text in described.values())  # a whole sentence each


@thorough
@given(problems(), st.sampled_from(NAMES), st.integers(0, 9))
def test_an_allocator_reads_no_more_than_it_declares(problem, name, seed):
    depths, n_weights, values, fixed, budget = problem
    sizes = sizes_of(n_weights, depths, fixed)
    budget = max(budget, smallest(sizes))

    def plan(profile):
        rng = np.random.default_rng(seed)
        return allocation.allocate(name, profile, sizes, budget, rng=rng)

    bits, reads = plan(profile_of(values, "median")), ALLOCATORS[name].reads
    if reads in ("nothing", "order"):
        assert plan(profile_of(np.exp(values), "other")) == bits
    if reads == "nothing":
        assert plan(None) == plan(profile_of(-values, "median")) == bits
    else:
        with pytest.raises(FedsimError, match="sense first"):
            plan(None)


def least_loss(values, sizes, budget, rng):
    """Of a table: the plan with the smallest sum of losses, by trying all of them."""
    plans = np.stack(np.meshgrid(*[range(len(sizes.depths))] * len(values)), -1)
    layers = np.arange(len(values))
    best, found = np.inf, None
    for columns in plans.reshape(-1, len(values)):
        total = sizes.fixed_bytes + sizes.layer_bytes[layers, columns].sum()
        loss = values[layers, columns].sum()
        if total <= budget and loss < best:
            best, found = loss, columns
    return tuple(sizes.depths[column] for column in found)


def test_an_allocator_that_reads_a_table():
    # 8 bytes a bit. Losses at 2, 4, 8 bits: 2 bits of layer 1 cost next to nothing.
    sizes = sizes_of([8, 8], (2, 8), fixed=0)
    table = profile_of([9.0, 5.0, 1.0, 0.3, 0.2, 0.1], "loss", depths=(2, 4, 8))
    vector = profile_of([1.0, 2.0], "median")
    entry = Allocator(least_loss, summary="Of a test.", meaning="of a test", reads="table")
    with registered(ALLOCATORS, "least_loss", entry):
        assert allocation.allocate("least_loss", table, sizes, 10) == (8, 2)
        assert allocation.allocate("least_loss", table, sizes_of([8, 8], (2, 4, 8), 0), 12) == (
            8,
            4,
        )
        with pytest.raises(FedsimError, match="does not order the layers: remove order"):
            allocation.allocate("least_loss", table, sizes, 16, order="ascending")
        with pytest.raises(FedsimError, match=r"'median' gives one value per layer; choose"):
            allocation.allocate("least_loss", vector, sizes, 10)
        with pytest.raises(FedsimError, match="measure at the legal depths"):
            allocation.allocate("least_loss", table, sizes_of([8, 8], (2, 3), 0), 10)
        with pytest.raises(FedsimError, match="sense first"):
            allocation.allocate("least_loss", None, sizes, 10)
    with pytest.raises(FedsimError, match=r"'loss' gives .*bit depth; choose another measure"):
        allocation.allocate("myqasr", table, sizes, 10)
    assert "least_loss" not in ALLOCATORS


def test_mean_bits():
    assert mean_bits((4, 8), (300, 100)) == 5.0
    assert mean_bits((7,), (5,)) == 7.0


def test_a_depth_that_is_not_legal_has_no_size():
    sizes = sizes_of([8, 8], (4, 8))
    assert sizes.total((4, 8)) == 100 + 12
    for bits in [(5, 8), (4, 9), (3, 8)]:
        with pytest.raises(ValueError, match="not in tuple"):
            sizes.total(bits)
