"""What each layer's depth costs: the whole network, changed in one place, against full precision.

By brute force every entry is one pass of a copy of the network, and torch's own divergence.
"""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from rounding_toys import Net, batch, fails_at, state_of, thorough
from torch import nn

from fedsim.errors import FedsimError
from fedsim.quant.activations import FLOAT, InputFormat, make_range, quantize_input
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.losses import (
    MAX_MEASURED,
    MEASURE,
    TOLERANCE,
    divergence,
    input_losses,
    weight_losses,
    wide_inputs,
)
from fedsim.quant.model import Batch
from fedsim.quant.rounding.independent import round_weight


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """A residual block; writes into what its own layers return."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.down(torch.tanh(self.up(x)).mul_(0.7))
        hidden += x
        return hidden


class Deep(nn.Module):
    """A stem that is kept in full precision, a module list, a nested tail, a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(Block(8) for _ in range(3))
        self.tail = nn.Sequential(nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 8), nn.GELU()))
        self.head = nn.Linear(8, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return 3 * self.head(self.tail(x))


class Fancy(nn.Module):
    """What makes it hard to hand back outputs: layers that run twice, in another order than they
    are named, or write into their input; outputs that are used late, in tuples and dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.last = nn.Linear(8, 6)
        self.twice = nn.Linear(8, 8)
        self.both = Both(8)
        self.relu = nn.ReLU(inplace=True)
        self.first = nn.Linear(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        early = self.first(x)
        bent = self.relu(early)  # `early` changes
        x = self.twice(torch.tanh(self.twice(early)))
        pair, named = self.both(x, scale=0.5)
        return 2 * self.last(pair[0] + pair[1] + named["sum"] + early + bent)


class Both(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, *, scale: float):
        a, b = self.left(x), self.right(x)
        return (a, scale * b), {"sum": a + b}


class Tied(nn.Module):
    """A table that is the head too, over blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.table = nn.Embedding(12, 8)
        self.blocks = nn.ModuleList(Block(8) for _ in range(2))
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.table(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def batches_of(kind: type[nn.Module]) -> list[Batch]:
    if kind is Tied:
        return [batch(torch.arange(10 * n).reshape(2, -1) * 5 % 12) for n in (1, 3)]
    return [batch(noise(2, 5, 6)), batch(noise(3, 9, 6, seed=1)), batch(noise(1, 1, 6, seed=2))]


KINDS = [Deep, Fancy, Tied]


def kl(full: torch.Tensor, other: torch.Tensor) -> float:
    """torch's own, in double precision, summed over positions."""
    p, q = (z.reshape(-1, z.shape[-1]).double().log_softmax(-1) for z in (full, other))
    return float(F.kl_div(q, p, reduction="sum", log_target=True))


def rounded(net: Net, index: int, depth: int) -> torch.Tensor:
    full = net.module.get_submodule(net.layers[index].name).weight.detach()
    return round_weight(full, depth, WeightFormat())


def by_brute_force(net: Net, batches: list[Batch], weight) -> float:
    """The loss of one changed weight: `weight` is (index, tensor)."""
    index, tensor = weight
    other = copy.deepcopy(net.module)
    other.get_submodule(net.layers[index].name).weight.data = tensor
    total = positions = 0.0
    with torch.no_grad():
        for one in batches:
            full = net.module(**one.inputs)
            total += kl(full, other(**one.inputs))
            positions += full.numel() / full.shape[-1]
    return total / positions


def rounder(net: Net):
    """Weights of the full-precision network, rounded before anything is changed."""
    kept = {
        (i, depth): rounded(net, i, depth) for i in range(len(net.layers)) for depth in range(2, 7)
    }
    return lambda index, depth: kept[index, depth]


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_is_that_of_brute_force(kind):
    net, batches = Net(kind()), batches_of(kind)
    depths = (2, 3, 4)
    weight, before = rounder(net), state_of(net.module)
    profile = weight_losses(net, batches, depths, weight)
    assert state_of(net.module) == before
    assert profile.measure == MEASURE
    assert profile.depths == depths
    assert profile.pairs is None
    assert net.forwards == len(batches) * (1 + 3 * len(net.layers))
    expected = [
        [by_brute_force(net, batches, (i, weight(i, d))) for d in depths]
        for i in range(len(net.layers))
    ]
    assert np.min(expected) > 2e-6
    np.testing.assert_allclose(profile.values, expected, rtol=2e-3, atol=3e-7)


def test_what_ends_before_a_layer_is_not_computed_again():
    net, batches = Net(Deep()), batches_of(Deep)[:1]
    calls: dict[str, int] = {}

    class Counts(nn.Module):
        def __init__(self, name: str, inner: nn.Module) -> None:
            super().__init__()
            self.name, self.inner = name, inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls[self.name] = calls.get(self.name, 0) + 1
            return self.inner(x)

    module = net.module
    module.stem = Counts("stem", module.stem)
    module.blocks = nn.ModuleList(Counts(str(i), b) for i, b in enumerate(module.blocks))
    net = Net(module)
    weight_losses(net, batches, (2, 4), rounder(net))
    # Once in full precision, and twice for each of the layers in it or before it.
    assert calls == {"stem": 1 + 2, "0": 1 + 2 * 3, "1": 1 + 2 * 5, "2": 1 + 2 * 7}


def test_the_order_and_size_of_batches_change_nothing_but_last_digits():
    net = Net(Deep())
    x = noise(12, 5, 6)
    weight = rounder(net)
    tables = [
        weight_losses(net, [batch(part) for part in x.split(size)], (2, 4), weight).values
        for size in (12, 5, 1)
    ]
    for table in tables[1:]:
        np.testing.assert_allclose(table, tables[0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("depths", [(2, 4, 8), (3, 6, 7, 16), (8, 10), (16,)])
def test_depths_that_are_not_measured_are_a_quarter_per_bit(depths):
    net, batches = Net(Deep()), batches_of(Deep)
    asked = set()

    def weight(index: int, depth: int) -> torch.Tensor:
        asked.add(depth)
        return rounded(net, index, depth)

    values = weight_losses(net, batches, depths, weight).values
    measured = {d for d in depths if d <= MAX_MEASURED} or {depths[0]}
    assert asked == measured
    last = max(measured)
    for i, depth in enumerate(depths):
        if depth > last:
            expected = values[:, depths.index(last)] * 0.25 ** (depth - last)
            np.testing.assert_allclose(values[:, i], expected)
    assert (values[:, 0] >= values[:, -1]).all()


def test_a_weight_that_does_not_change_costs_nothing():
    net = Net(Deep())
    full = [net.module.get_submodule(a.name).weight.detach().clone() for a in net.layers]
    profile = weight_losses(net, batches_of(Deep), (2, 3), lambda i, d: full[i], pairs=True)
    assert (profile.values == 0).all()
    assert profile.pairs is not None
    assert np.abs(profile.pairs).max() < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_cross_terms_of_small_changes(kind):
    """The diagonal is the losses; with twice the cross term they are the loss of both changes."""
    net, batches = Net(kind()), batches_of(kind)
    full = [net.module.get_submodule(a.name).weight.detach().clone() for a in net.layers]
    moved = [
        {d: w + 0.002 * d * noise(*w.shape, seed=10 * i + d) for d in (2, 3)}
        for i, w in enumerate(full)
    ]
    profile = weight_losses(net, batches, (2, 3), lambda i, d: moved[i][d], pairs=True)
    pairs, n = profile.pairs, 2 * len(net.layers)
    assert pairs is not None
    assert pairs.shape == (n, n)
    np.testing.assert_array_equal(pairs, pairs.T)
    np.testing.assert_allclose(np.diag(pairs), profile.values.reshape(-1), rtol=1e-9)
    assert np.linalg.eigvalsh(pairs).min() > -1e-9
    # Two layers changed together, in a copy of the network.
    for i, j in ((0, 1), (1, len(full) - 1)):
        other = copy.deepcopy(net.module)
        for index in (i, j):
            other.get_submodule(net.layers[index].name).weight.data = moved[index][3]
        both = positions = 0.0
        with torch.no_grad():
            for one in batches:
                z = net.module(**one.inputs)
                both += kl(z, other(**one.inputs))
                positions += z.numel() / z.shape[-1]
        a, b = 2 * i + 1, 2 * j + 1
        expected = pairs[a, a] + pairs[b, b] + 2 * pairs[a, b]
        assert both / positions == pytest.approx(expected, rel=0.15)


def test_cross_terms_of_depths_that_are_not_measured():
    """A step half as wide makes half the change."""
    net = Net(Deep())
    pairs = weight_losses(net, batches_of(Deep), (6, 8), rounder(net), pairs=True).pairs
    assert pairs is not None
    np.testing.assert_allclose(pairs[::2, 1::2], pairs[::2, ::2] / 4, rtol=1e-5, atol=1e-15)
    np.testing.assert_allclose(pairs[1::2, 1::2], pairs[::2, ::2] / 16, rtol=1e-5, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_by_brute_force(kind):
    net, batches = Net(kind()), batches_of(kind)
    hows = [InputFormat(5), InputFormat(4, make_range(-2, 2)), FLOAT, InputFormat(8)]
    inputs = [
        FLOAT if layer.kind == "embedding" else hows[i % 4] for i, layer in enumerate(net.layers)
    ]
    before = state_of(net.module)
    found = input_losses(net, batches, inputs)
    assert state_of(net.module) == before
    for layer, how, value in zip(net.layers, inputs, found, strict=True):
        other = copy.deepcopy(net.module)
        owner = other.get_submodule(layer.name)
        owner.register_forward_pre_hook(lambda m, args, how=how: (quantize_input(args[0], how),))
        total = positions = 0.0
        with torch.no_grad():
            for one in batches:
                z = net.module(**one.inputs)
                total += kl(z, other(**one.inputs))
                positions += z.numel() / z.shape[-1]
        assert value == pytest.approx(total / positions, rel=1e-3, abs=1e-6)
        assert (value == 0) == (how == FLOAT)


@thorough
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(1e-4, 1))
def test_as_few_wide_inputs_as_can_be(losses, tolerance):
    """The rest loses at most the tolerance together; no smaller set of wide ones does."""
    values = np.array(losses)
    wide = wide_inputs(values, tolerance)
    kept = values[~wide].sum()
    assert kept <= tolerance * (1 + 1e-12)
    n = int(wide.sum())
    if n:  # the least that one fewer could leave: all but the n - 1 largest
        assert np.sort(values)[: len(values) - n + 1].sum() > tolerance
        assert values[wide].min() >= values[~wide].max(initial=0)


def test_wide_inputs_by_hand():
    assert wide_inputs(np.array([2e-2, 4e-4, 0.0, 5e-4, 3e-4])).tolist() == [1, 0, 0, 1, 0]
    assert not wide_inputs(np.array([TOLERANCE, 0.0])).any()
    assert wide_inputs(np.array([1.0])).all()


def test_divergence():
    a, b = noise(7, 5), noise(7, 5, seed=1)
    assert divergence(a, b) == pytest.approx(kl(a, b) / 7, rel=1e-5)
    assert divergence(a, a) == 0
    assert divergence(a, a + 3) == pytest.approx(0, abs=1e-6)


def test_no_clip():
    net = Net(Deep())
    with pytest.raises(FedsimError, match=r"with no clip; give at least one"):
        weight_losses(net, [], (2,), rounder(net))
    with pytest.raises(FedsimError, match=r"with no clip; give at least one"):
        input_losses(net, [], [FLOAT] * len(net.layers))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
def test_outputs_that_are_not_finite(bad):
    """By the clips, and by one layer's weight."""
    net = Net(Deep())
    before, x = state_of(net.module), noise(2, 5, 6)
    x[0, 2, 1] = bad
    with pytest.raises(FedsimError, match=r"layer 'stem': .* not finite once .*; check the clips"):
        weight_losses(net, [batch(x)], (2,), rounder(net))
    assert state_of(net.module) == before
    plain = rounder(net)

    def weight(index: int, depth: int) -> torch.Tensor:
        return plain(index, depth) + (torch.nan if index == 3 else 0)

    name = net.layers[3].name
    with pytest.raises(FedsimError, match=rf"layer '{name}': .* not finite"):
        weight_losses(net, [batch(noise(2, 5, 6))], (2,), weight)
    assert state_of(net.module) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [0, 1, 4])
def test_nothing_is_left_behind_after_an_error(kind, n):
    net, batches = Net(kind()), batches_of(kind)
    weight, before = rounder(net), state_of(net.module)
    forward = net.forward
    net.forward = fails_at(n, forward)
    with pytest.raises(RuntimeError, match="on purpose"):
        weight_losses(net, batches, (2, 3), weight)
    assert state_of(net.module) == before
    net.forward = fails_at(n, forward)
    with pytest.raises(RuntimeError, match="on purpose"):
        input_losses(net, batches, [InputFormat(8)] * len(net.layers))
    assert state_of(net.module) == before
    net.forward = forward
    with pytest.raises(RuntimeError, match="on purpose"):
        weight_losses(net, batches, (2, 3), fails_at(n, weight))
    assert state_of(net.module) == before


def test_a_forward_of_the_users_own_stays():
    """Some wrap a module by giving it a `forward`; it is part of the network."""
    net = Net(Deep())
    stem = net.module.stem
    stem.forward = partial(lambda inner, x: 2 * inner(x), stem.forward)
    x = [batch(noise(2, 5, 6))]
    logits = net.module(x[0].inputs["x"])
    before = state_of(net.module)
    table = weight_losses(net, x, (2, 3), rounder(net)).values
    assert state_of(net.module) == before
    assert torch.equal(net.module(x[0].inputs["x"]), logits)
    del stem.forward
    assert np.isfinite(table).all()
