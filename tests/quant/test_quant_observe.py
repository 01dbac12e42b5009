from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from quant_toys import Echo, Talker, Tied, Toy, clips, n_hooks, outputs_of, talk, thorough
from torch import nn

from fedsim.errors import FedsimError
from fedsim.quant.model import Batch
from fedsim.quant.observe import ROWS, observe
from fedsim.quant.products import as_product, outputs

LENGTHS = [61, 90, 47, 33, 80]


class One(nn.Module):
    """A network of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def rows_times_weight(toy: Toy, seen) -> torch.Tensor:
    layer = next(layer for layer in toy.layers if layer.name == "layer")
    module = toy.module.layer
    return outputs(seen.rows, as_product(layer, seen.rows.shape[1], module.weight), module.bias)


@st.composite
def convolutions(draw) -> nn.Conv1d:
    c_in, c_out, groups = draw(st.sampled_from([(4, 6, 1), (4, 6, 2), (6, 6, 6), (3, 6, 3)]))
    kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    stride, padding, bias = draw(st.integers(1, 3)), draw(st.integers(0, 4)), draw(st.booleans())
    torch.manual_seed(draw(st.integers(0, 99)))
    return nn.Conv1d(c_in, c_out, kernel, stride, padding, dilation, groups, bias)


@torch.no_grad()
@thorough
@given(convolutions())
def test_rows_of_a_convolution(module):
    c_in, c_out, groups = module.in_channels, module.out_channels, module.groups
    toy = Toy(One(module))
    x = torch.randn(3, c_in, 29)
    seen = observe(toy, [Batch({"x": x})], capacity=1000)["layer"]
    own = module(x)  # (3, c_out, T)
    assert seen.rows.shape == (3 * own.shape[2], groups, c_in // groups * module.kernel_size[0])
    flat = own.transpose(1, 2).reshape(-1, c_out)
    torch.testing.assert_close(rows_times_weight(toy, seen), flat, rtol=1e-5, atol=1e-5)
    assert seen.fisher is None
    assert (seen.low, seen.high) == (float(x.min()), float(x.max()))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_rows_of_a_convolution_with_named_padding():
    torch.manual_seed(0)
    for padding, kernel, dilation in itertools.product(("same", "valid"), range(1, 6), (1, 2, 3)):
        toy = Toy(One(nn.Conv1d(4, 6, kernel, padding=padding, dilation=dilation, groups=2)))
        x = torch.randn(2, 4, 23)
        seen = observe(toy, [Batch({"x": x})])["layer"]
        own = toy.module(x).transpose(1, 2).reshape(-1, 6)
        torch.testing.assert_close(rows_times_weight(toy, seen), own, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(3, 7, 5), (9, 5)])
def test_rows_of_a_linear_layer(shape):
    toy = Toy(One(nn.Linear(5, 4)))
    x = torch.randn(shape)
    seen = observe(toy, [Batch({"x": x})])["layer"]
    assert torch.equal(seen.rows, x.reshape(-1, 1, 5))
    torch.testing.assert_close(rows_times_weight(toy, seen), toy.module(x).reshape(-1, 4))


@torch.no_grad()
def test_padded_frames_leave_no_rows():
    toy = Toy(One(nn.Conv1d(2, 3, 3, padding=1)))
    frames = torch.tensor([4, 9, 1])
    x = torch.randn(3, 2, 9)
    seen = observe(toy, [Batch({"x": x}, {"layer": frames}, {"layer": frames})])["layer"]
    own = toy.module(x)
    speech = torch.cat([own[i, :, :n].T for i, n in enumerate(frames)])
    torch.testing.assert_close(rows_times_weight(toy, seen), speech, rtol=1e-5, atol=1e-5)
    kept = torch.cat([x[i, :, :n].flatten() for i, n in enumerate(frames)])
    assert (seen.low, seen.high) == (float(kept.min()), float(kept.max()))


def test_silence_that_the_model_answers_to_belongs_to_the_range():
    x = torch.randn(1, 9, 4)
    x[0, 7] = 50.0
    frames, speech = torch.tensor([8]), torch.tensor([3])
    batch = Batch({"x": x}, {"layer": frames}, {"layer": frames}, speech={"layer": speech})
    seen = observe(Toy(Echo(4)), [batch])["layer"]
    assert seen.high == 50.0
    assert torch.equal(seen.rows, x[0, :8, None])


@torch.no_grad()
def test_above_capacity_rows_are_still_real_frames_of_all_clips():
    toy = Toy(One(nn.Conv1d(2, 3, 4, stride=2)))
    xs = [torch.randn(3, 2, 400) for _ in range(4)]
    seen = observe(toy, [Batch({"x": x}) for x in xs])["layer"]
    assert ROWS / 2 <= len(seen.rows) <= ROWS
    answers = rows_times_weight(toy, seen)
    real = torch.cat([toy.module(x).transpose(1, 2).flatten(0, 1) for x in xs])  # (4 * 3 * 199, 3)
    distance, place = torch.cdist(answers.double(), real.double()).min(dim=1)
    assert float(distance.max()) < 1e-5
    assert len(place.unique()) == len(place)
    per_clip = torch.bincount(place // 199, minlength=12)
    assert int(per_clip.min()) >= len(place) / 12 * 0.6
    assert torch.equal(place, place.sort().values)


def test_ranges_are_masked_and_exact_over_all_batches():
    toy = Toy(Talker())
    batches = [talk(clips(LENGTHS[:3])), talk(clips(LENGTHS[3:], seed=1))]
    seen = observe(toy, batches, rows=False)
    inputs: dict[str, list[torch.Tensor]] = {}

    def note(name):
        return lambda module, args: inputs.setdefault(name, []).append(args[0].detach())

    handles = [
        toy.module.get_submodule(layer.name).register_forward_pre_hook(note(layer.name))
        for layer in toy.layers
    ]
    for batch in batches:
        toy.forward(batch)
    for handle in handles:
        handle.remove()
    for layer in toy.layers:
        kept = []
        for batch, x in zip(batches, inputs[layer.name], strict=True):
            frames = batch.frames_in[layer.name]
            x = x.transpose(1, 2) if layer.kind == "conv1d" else x
            kept += [row[: int(n)].flatten() for row, n in zip(x, frames, strict=True)]
        kept = torch.cat(kept)
        view = seen[layer.name]
        assert (view.low, view.high) == (float(kept.min()), float(kept.max()))
        assert view.rows is None
    assert seen["conv1"].high < 50.0  # the padding


@pytest.mark.parametrize("frozen", [True, False])
def test_fisher_is_the_squared_gradient(frozen):
    toy = Toy(Talker())
    toy.module.requires_grad_(not frozen)
    batches = [talk(clips(LENGTHS[:3])), talk(clips(LENGTHS[3:], seed=1))]
    seen = observe(toy, batches, fisher=True, capacity=1000)
    assert toy.forwards == 2
    assert n_hooks(toy.module) == 0
    assert all(p.grad is None for p in toy.module.parameters())
    assert all(p.requires_grad is not frozen for p in toy.module.parameters())

    # The same by autograd.grad, clip by clip, without padding: each clip's loss is its own.
    expected: dict[str, list[torch.Tensor]] = {}
    toy.module.requires_grad_(True)
    for length, batch_seed in [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]:
        group = clips(LENGTHS[:3]) if batch_seed == 0 else clips(LENGTHS[3:], seed=1)
        batch = talk([group[length]])
        answers: list[torch.Tensor] = []
        outs = outputs_of(toy.module, lambda b=batch, a=answers: a.append(toy.forward(b)))
        loss = toy.loss(batch, answers[0])
        for layer in toy.layers:
            (grad,) = torch.autograd.grad(loss, outs[layer.name], retain_graph=True)
            rows = grad[0].T if layer.kind == "conv1d" else grad[0]
            expected.setdefault(layer.name, []).append(rows.square())
    for layer in toy.layers:
        want = torch.cat(expected[layer.name])
        got = seen[layer.name].fisher
        assert len(seen[layer.name].rows) == len(got) == len(want)
        assert float(want.max()) > 0
        torch.testing.assert_close(got, want, rtol=2e-4, atol=1e-9)


def test_fisher_of_the_last_layer_by_hand():
    # Cross-entropy: the gradient by the logits is softmax - one-hot of the own answer.
    toy = Toy(Talker())
    batch = talk(clips([64, 64]))
    seen = observe(toy, [batch], fisher=True)
    p = F.softmax(toy.forward(batch).detach(), dim=-1).flatten(0, 1)
    expected = (p - F.one_hot(p.argmax(-1), 5)).square()
    torch.testing.assert_close(seen["head"].fisher, expected, rtol=1e-4, atol=1e-9)


def test_rows_and_fisher_stay_side_by_side_above_capacity():
    """With logits = inputs the Fisher of a row is known from the row alone."""
    toy = Toy(One(nn.Linear(4, 4, bias=False)))
    toy.module.layer.weight.data = torch.eye(4)
    xs = [torch.randn(2, n, 4) for n in (50, 700, 33, 400, 5)]
    seen = observe(toy, [Batch({"x": x}) for x in xs], fisher=True, capacity=64)["layer"]
    assert 32 <= len(seen.rows) <= 64
    p = F.softmax(seen.rows[:, 0], dim=-1)
    expected = (p - F.one_hot(p.argmax(-1), 4)).square()
    torch.testing.assert_close(seen.fisher, expected, rtol=1e-4, atol=1e-9)


class Twice(nn.Module):
    """One layer that a forward pass uses two times, and one whose answer is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(4, 4)
        self.idle = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.idle(x)
        return self.layer(torch.tanh(self.layer(x)))


def test_fisher_of_a_layer_used_twice_and_of_one_that_does_not_matter():
    toy = Toy(Twice())
    x = torch.randn(2, 3, 4)
    seen = observe(toy, [Batch({"x": x})], fisher=True)
    layer = toy.module.layer
    first = layer(x)
    second = layer(torch.tanh(first))
    loss = toy.loss(Batch({}), second)
    grads = torch.autograd.grad(loss, [first, second])
    want = torch.cat([g.reshape(-1, 4).square() for g in grads])
    rows = torch.cat([x.reshape(-1, 4), torch.tanh(first).detach().reshape(-1, 4)])
    torch.testing.assert_close(seen["layer"].rows[:, 0], rows)
    torch.testing.assert_close(seen["layer"].fisher, want, rtol=1e-4, atol=1e-9)
    assert torch.equal(seen["idle"].fisher, torch.zeros(6, 2))


def test_tables_have_no_input_to_quantize():
    toy = Toy(Tied(), keep=["head"])
    batch = Batch({"x": torch.tensor([[0, 3, 5]])})
    assert set(observe(toy, [batch])) == {layer.name for layer in toy.layers} - {"table"}
    assert set(observe(Toy(Tied()), [batch])) == {"mid", "head"}


@pytest.mark.parametrize("fisher", [True, False])
def test_hooks_are_gone_after_an_error(fisher):
    toy = Toy(Talker())

    def stream():
        yield talk(clips(LENGTHS))
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError):
        observe(toy, stream(), fisher=fisher)
    assert n_hooks(toy.module) == 0
    assert all(p.requires_grad for p in toy.module.parameters())


def test_a_layer_that_is_never_reached_is_named():
    toy = Toy(Talker())
    toy.module.spare = nn.Linear(3, 3)
    toy = Toy(toy.module)
    with pytest.raises(FedsimError, match=r"'spare'.*add the layer to model\.keep"):
        observe(toy, [talk(clips(LENGTHS))])
    with pytest.raises(FedsimError, match=r"'conv1'.*at least one clip"):
        observe(toy, [])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("first", [True, False])
def test_an_input_that_is_not_finite_is_an_error(bad, first):
    good, spoilt = torch.randn(1, 5, 4), torch.randn(1, 5, 4)
    spoilt[0, 2, 1] = bad
    xs = [spoilt, good] if first else [good, spoilt]
    with pytest.raises(FedsimError, match=r"'layer'.*(nan|inf).*check the clips' level"):
        observe(Toy(Echo(4)), [Batch({"x": x}) for x in xs])


def test_the_same_twice():
    batches = [talk(clips(LENGTHS, seed)) for seed in range(8)]
    a, b = (observe(Toy(Talker()), batches, capacity=32) for _ in range(2))
    for name in a:
        np.testing.assert_array_equal(a[name].rows, b[name].rows)
