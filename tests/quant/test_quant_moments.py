"""Second moments against X^T X / n by brute force, over networks and clips in small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from rounding_toys import Net, batch, fails_at, state_of, thorough
from torch import nn

from fedsim.errors import FedsimError
from fedsim.quant.layers import Layer
from fedsim.quant.model import Batch
from fedsim.quant.moments import (
    MIN_ROWS,
    LayerMoments,
    Moments,
    second_moments,
    unfolded,
    usable,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.3


def mean_of(rows: np.ndarray) -> np.ndarray:
    return rows.T.astype(np.float64) @ rows.astype(np.float64) / len(rows)


def assert_moments(found: LayerMoments, rows: list[np.ndarray]) -> None:
    """`rows` (n, K) of each group."""
    assert found.mean.dtype == np.float32
    assert found.mean.shape == (len(rows), rows[0].shape[1], rows[0].shape[1])
    assert found.rows == len(rows[0])
    for one, group in zip(found.mean, rows, strict=True):
        expected = mean_of(group)
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-5 * (1 + expected.max()))
        np.testing.assert_array_equal(one, one.T)


def windows(conv: nn.Conv1d, clip: np.ndarray) -> list[np.ndarray]:
    """The inputs (frames, K) of each group for one clip (C, T), place by place."""
    (k,), (stride,), (dilation,) = conv.kernel_size, conv.stride, conv.dilation
    reach = dilation * (k - 1)
    if conv.padding == "same":
        before = reach // 2
        after = reach - before
    else:
        before = after = 0 if conv.padding == "valid" else conv.padding[0]
    padded = np.pad(clip, ((0, 0), (before, after)))
    per_group = clip.shape[0] // conv.groups
    starts = range(0, padded.shape[1] - reach, stride)
    return [
        np.stack(
            [
                np.concatenate(
                    [
                        padded[c, t : t + reach + 1 : dilation]
                        for c in range(g * per_group, (g + 1) * per_group)
                    ]
                )
                for t in starts
            ]
        )
        for g in range(conv.groups)
    ]


CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 4, "stride": 3},
    {"kernel_size": 3, "dilation": 2},
    {"kernel_size": 5, "padding": 2, "groups": 2},
    {"kernel_size": 4, "padding": 3, "stride": 2, "dilation": 3, "groups": 3},
    {"kernel_size": 4, "padding": "same", "groups": 6},
    {"kernel_size": 3, "padding": "valid", "dilation": 4},
    {"kernel_size": 1},
]


class Conv(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(6, 12, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


@pytest.mark.parametrize("lengths", [(40, 40, 40), (40, 17, 25)])
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_a_convolution(options, lengths):
    """Over its windows; frames behind a clip are zeros, whatever the batch holds there."""
    net = Net(Conv(**options))
    x = noise(3, 6, 40)
    for clip, n in zip(x, lengths, strict=True):
        clip[:, n:] = 1e6
    counts = {} if set(lengths) == {40} else {"conv": torch.tensor(lengths)}
    found = second_moments(net, [batch(x, **counts)])
    clips = [windows(net.module.conv, c[:, :n].numpy()) for c, n in zip(x, lengths, strict=True)]
    groups = [np.concatenate(one) for one in zip(*clips, strict=True)]
    assert_moments(found["conv"], groups)
    # What the windows stand for: the layer's own product gives its own output.
    first = net.module(x[:1, :, : lengths[0]])[0].detach().numpy()
    w = net.module.conv.weight.detach().numpy().reshape(len(groups), 12 // len(groups), -1)
    by_hand = np.concatenate([a @ b.T for a, b in zip(clips[0], w, strict=True)], axis=1).T
    by_hand += net.module.conv.bias.detach().numpy()[:, None]
    np.testing.assert_allclose(by_hand, first, atol=1e-4)


def test_a_clip_too_short_for_one_window():
    """Beside longer ones, with which it shares a batch, it adds nothing."""
    net = Net(Conv(kernel_size=5))
    x = noise(4, 6, 40)
    found = second_moments(net, [batch(x, conv=torch.tensor([40, 4, 0, -1]))])
    assert_moments(found["conv"], windows(net.module.conv, x[0].numpy()))


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_unfolding_in_pieces_of_any_size(options):
    conv = Conv(**options).conv
    x = noise(2, 6, 50)
    counts = torch.tensor([50, 23])
    whole = torch.cat(list(unfolded(conv, x, counts, 2)), dim=1)
    for chunk_bytes in (1, 4 * 6 * conv.kernel_size[0] * 7, 500):
        parts = list(unfolded(conv, x, counts, 2, chunk_bytes=chunk_bytes))
        assert len(parts) > 2
        largest = max(part.numel() for part in parts)
        assert 4 * largest <= max(chunk_bytes, 4 * 6 * conv.kernel_size[0])
        assert torch.equal(torch.cat(parts, dim=1), whole)


class Stack(nn.Module):
    """An embedding, two linear layers that read frames, one that reads one vector per clip."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 5)
        self.first = nn.Linear(5, 7)
        self.second = nn.Linear(7, 3)
        self.pooled = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pooled(self.second(torch.tanh(self.first(self.table(x)))).mean(1))


def test_linear_layers_and_frames_that_count():
    net = Net(Stack())
    x = torch.arange(40).reshape(4, 10) * 7 % 9
    lengths = torch.tensor([10, 3, 7, 1])
    found = second_moments(net, [batch(x, first=lengths, second=lengths)])
    assert set(found) == {"first", "second", "pooled"}  # an embedding looks rows up
    table = net.module.table(x).detach()
    hidden = torch.tanh(net.module.first(table)).detach()

    def counted(values: torch.Tensor) -> list[np.ndarray]:
        return [np.concatenate([v[:n].numpy() for v, n in zip(values, lengths, strict=True)])]

    assert_moments(found["first"], counted(table))
    assert_moments(found["second"], counted(hidden))
    assert_moments(found["pooled"], [net.module.second(hidden).mean(1).detach().numpy()])


def test_batches_of_any_size_give_the_same():
    net = Net(Stack())
    clips = [torch.arange(n) * 5 % 9 for n in (30, 12, 12, 45, 3)]

    def together(places: list[int]) -> Batch:
        longest = max(len(clips[i]) for i in places)
        rows = torch.stack([F.pad(clips[i], (0, longest - len(clips[i])), value=8) for i in places])
        counts = torch.tensor([len(clips[i]) for i in places])
        return batch(rows, first=counts, second=counts)

    alone = second_moments(net, [together([i]) for i in range(5)])
    for places in ([[0, 1, 2, 3, 4]], [[4, 2], [0], [3, 1]]):
        found = second_moments(net, [together(group) for group in places])
        for name in ("first", "second"):
            assert found[name].rows == alone[name].rows == 102
            np.testing.assert_allclose(found[name].mean, alone[name].mean, rtol=1e-4, atol=1e-6)


class Attention(nn.Module):
    """Query, key and value of one input, as in any encoder; those of a second read another."""

    def __init__(self, *, transposed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = _Heads(), _Heads(transposed=transposed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


class _Heads(nn.Module):
    def __init__(self, *, transposed: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
        self.transposed = transposed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        other = x.transpose(1, 2) if self.transposed else x
        return self.q(x) + torch.tanh(self.k(other)) * self.v(x)


def test_layers_that_read_the_same_share_their_moments():
    net = Net(Attention())
    xs = [noise(2, 9, 6, seed=i) for i in range(3)]
    lengths = torch.tensor([9, 4])
    counts = {f"{block}.{name}": lengths for block in "ab" for name in "qkv"}
    found = second_moments(net, [batch(x, **counts) for x in xs])
    assert {id(found[f"a.{n}"].mean) for n in "qkv"} == {id(found["a.q"].mean)}
    assert found["b.q"].mean is not found["a.q"].mean
    rows = [np.concatenate([c[:n].numpy() for x in xs for c, n in zip(x, lengths, strict=True)])]
    for name in "qkv":
        assert_moments(found[f"a.{name}"], rows)
    hidden = torch.cat([net.module.a(x) for x in xs]).detach()
    kept = [c[:n].numpy() for c, n in zip(hidden, lengths.repeat(3), strict=True)]
    assert_moments(found["b.v"], [np.concatenate(kept)])
    assert Moments(found).nbytes == 2 * 6 * 6 * 4  # two inputs, once each


class PositionedAttention(nn.Module):
    """Query, key and value of the same input; query and key of a table besides, as in DeBERTa."""

    def __init__(self, order):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.table, self.order = noise(5, 6, seed=9)[None], order

    def forward(self, x):
        total = self.query(x) + self.key(x) + self.value(x)
        for name in self.order:
            total = total + getattr(self, name)(self.table).mean()
        return total


@pytest.mark.parametrize("order", [("key", "query"), ("query", "key"), ("key",), ("query",), ()])
def test_layers_of_which_one_reads_more_are_told_apart(order):
    names = ("query", "key", "value")
    net = PositionedAttention(order)
    clips = [noise(n, 6, seed=n) for n in (40, 50, 60)]
    found = second_moments(Net(net), [batch(clip[None]) for clip in clips])
    for name in names:
        more = [net.table[0]] * len(clips) if name in order else []
        assert_moments(found[name], [np.concatenate([*clips, *more])])


def test_another_view_of_the_same_memory_is_another_input():
    """A square input and its transpose have one address and one shape."""
    net = Net(Attention(transposed=True))
    x = noise(2, 6, 6)
    found = second_moments(net, [batch(x)])
    hidden = net.module.a(x).detach()
    assert_moments(found["b.q"], [hidden.reshape(-1, 6).numpy()])
    assert_moments(found["b.k"], [hidden.transpose(1, 2).reshape(-1, 6).numpy()])
    assert_moments(found["b.v"], [hidden.reshape(-1, 6).numpy()])


class Shared(nn.Module):
    """One layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(torch.tanh(self.one(x)))


def test_a_layer_that_runs_twice_counts_twice():
    net = Net(Shared())
    x = noise(3, 5, 4)
    between = torch.tanh(net.module.one(x)).detach()
    rows = torch.cat([x, between]).reshape(-1, 4).numpy()
    assert_moments(second_moments(net, [batch(x)])["one"], [rows])


@thorough
@given(st.integers(1, 70), st.integers(1, 30), st.integers(0, 99))
def test_any_size(k, n, seed):
    torch.manual_seed(seed)
    net = Net(nn.Sequential(nn.Linear(k, 3)))
    x = noise(n, k, seed=seed)
    found = second_moments(net, [Batch({"input": part}) for part in x.split(7)])
    assert_moments(found["0"], [x.numpy()])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_inputs_that_are_not_finite(bad):
    net = Net(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)))
    x = noise(2, 5, 4)
    x[1, 2, 3] = bad
    before = state_of(net.module)
    with pytest.raises(FedsimError, match=r"layer '0' has inputs .*: .*; check the clips' level"):
        second_moments(net, [Batch({"input": x})])
    assert state_of(net.module) == before


def test_nothing_is_left_behind():
    net = Net(Attention())
    before = state_of(net.module)
    second_moments(net, [batch(noise(2, 9, 6))])
    assert state_of(net.module) == before
    net.forward = fails_at(1, net.forward)
    with pytest.raises(RuntimeError, match="on purpose"):
        second_moments(net, [batch(noise(2, 9, 6, seed=i)) for i in range(3)])
    assert state_of(net.module) == before
    assert second_moments(net, []) == {}


def random_moments(names: str, rows: int, seed: int) -> dict[str, LayerMoments]:
    rng = np.random.default_rng(seed)
    return {
        name: LayerMoments(rng.standard_normal((1, 3, 3)).astype(np.float32), rows)
        for name in names
    }


def test_a_layer_that_saw_too_little_has_no_moments():
    found = random_moments("a", MIN_ROWS, 0) | random_moments("b", MIN_ROWS - 1, 0)
    assert usable(found, Layer("a", "linear", (2, 3))) is found["a"]
    assert usable(found, Layer("b", "linear", (2, 3))) is None
    assert usable(found, Layer("c", "linear", (2, 3))) is None
