"""Linear layers in integers against sums in int64 and products in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quant_toys import Tied, Toy, thorough
from torch import nn

from fedsim.quant import integers
from fedsim.quant.activations import Range, quantize_activation
from fedsim.quant.bank import BlobStore, LayerBank, WeightCache
from fedsim.quant.integers import FEW, as_integers, bytes_are_fast, integer_linear, integers_of
from fedsim.quant.layers import Layer
from fedsim.quant.packing import unpack
from fedsim.quant.switch import Switch, switch_of
from fedsim.quant.weights import PackedWeight, dequantize_weight, quantize_weight

pytestmark = pytest.mark.skipif(
    not bytes_are_fast(), reason="this processor multiplies bytes no faster than floats"
)


def by_definition(
    x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, rng: Range, bits: int
) -> np.ndarray:
    """The sum in int64 and one product, in double precision."""
    n, k = packed.shape
    q = unpack(packed.payload, packed.bits, n * k).astype(np.int64).reshape(n, k)
    q -= 1 << (packed.bits - 1)
    steps = quantize_activation(x, rng, bits).double().numpy() / np.float32(rng.scale(bits))
    sums = np.rint(steps).astype(np.int64) @ q.T
    y = sums * float(np.float32(rng.scale(bits))) * packed.scales.astype(float)
    return y if bias is None else y + bias.double().numpy()


@thorough
@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    n=st.integers(1, 70),
    k=st.integers(1, 300),
    bits=st.integers(2, 8),
    activation_bits=st.integers(4, 8),
    granularity=st.sampled_from(["per_tensor", "per_channel"]),
    ends=st.tuples(st.floats(-9, -0.01) | st.just(0.0), st.floats(0.01, 9) | st.just(0.0)),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_the_exact_sum_and_one_product(
    rows, n, k, bits, activation_bits, granularity, ends, biased, seed
):
    generator = torch.Generator().manual_seed(seed)
    packed = quantize_weight(torch.randn(n, k, generator=generator), bits, granularity)
    x = 4 * torch.randn(*rows, k, generator=generator)  # some of it outside the range
    bias = torch.randn(n, generator=generator) if biased else None
    rng = Range(*ends)
    with torch.inference_mode():
        y = integer_linear(as_integers(packed), bias, rng, activation_bits)(x)
    wanted = by_definition(x, packed, bias, rng, activation_bits)
    assert y.shape == (*rows, n)
    assert y.dtype == torch.float32
    largest = np.abs(wanted).max() if wanted.size else 0.0
    np.testing.assert_allclose(y.numpy(), wanted, rtol=1e-5, atol=1e-6 * (1 + largest))


def test_the_largest_sums_do_not_saturate():
    """Pairs of the largest products leave 16 bits, where older processors add them up."""
    packed = PackedWeight((24, 4096), 8, np.full(24 * 4096, 255, np.uint8), np.ones(1, np.float32))
    x = torch.full((3, 4096), 255.0)
    with torch.inference_mode():
        y = integer_linear(as_integers(packed), None, Range(0.0, 255.0), 8)(x)
    assert (y == 4096 * 255 * 127).all()


def test_a_clip_is_answered_alike_alone_and_in_a_batch():
    packed = quantize_weight(torch.randn(192, 256), 5, "per_channel")
    forward = integer_linear(as_integers(packed), torch.randn(192), Range(-2.0, 3.0), 8)
    x = torch.randn(4, 123, 256)
    with torch.inference_mode():
        together = forward(x)
        alone = [forward(x[i : i + 1, :n])[0] for i, n in enumerate((123, 60, 7, 1))]
    for clip, same in zip(alone[:3], together, strict=False):
        assert torch.equal(clip, same[: len(clip)])
    # A single row has a kernel of its own, which multiplies the scales in another order.
    torch.testing.assert_close(alone[3], together[3, :1], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "bits", "serve"),
    [
        (Layer("a", "linear", (256, 256)), 8, True),
        (Layer("a", "linear", (256, 256)), 2, True),
        (Layer("a", "linear", (256, 256)), 9, False),
        (Layer("a", "linear", (1, FEW)), 8, True),
        (Layer("a", "linear", (1, FEW - 1)), 8, False),
        (Layer("a", "linear", (1, 70_000)), 8, False),  # a sum could leave int32
        (Layer("a", "embedding", (256, 256)), 8, False),
        (Layer("a", "conv1d", (256, 256, 1)), 8, False),
    ],
)
def test_which_layers_they_serve(layer, bits, serve, monkeypatch):
    packed = quantize_weight(torch.randn(layer.shape), bits, "per_channel")
    assert (integers_of(layer, packed) is not None) is serve
    monkeypatch.setattr(integers, "bytes_are_fast", lambda: False)
    assert integers_of(layer, packed) is None


class Wide(nn.Module):
    """Two linear layers wide enough for integers, one of a subclass that computes otherwise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(192, 256)
        self.second = Doubled(256, 192, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


class Doubled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def installed(toy: Toy, bits: int, activation_bits: int, *, integers: bool) -> Switch:
    """Put a toy's own weights at `bits` in place; return its switch."""
    switch = switch_of(toy)
    full = switch.full_weights()
    packed = {a.name: quantize_weight(full[a.name], bits, "per_channel") for a in toy.layers}
    switch.install(
        {name: dequantize_weight(p) for name, p in packed.items()},
        switch.full_leftovers(),
        dict.fromkeys(packed, Range(-3.0, 4.0)),
        activation_bits,
        {a.name: integers_of(a, packed[a.name]) for a in toy.layers} if integers else None,
    )
    return switch


def products(toy: Toy, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return what a toy answers, and how many of its products were in integers."""
    with torch.profiler.profile() as found, torch.inference_mode():
        y = toy.module(x)
    return y, sum(e.count for e in found.key_averages() if e.key == "onednn::qlinear_pointwise")


@pytest.mark.parametrize(("activation_bits", "wanted"), [(4, 1), (8, 1), (9, 0)])
def test_a_model_answers_as_with_floats(activation_bits, wanted):
    toys = [Toy(Wide()) for _ in range(2)]
    x = torch.randn(2, 50, 192)
    full = toys[0].module(x)
    switches = [
        installed(toy, 6, activation_bits, integers=ints)
        for toy, ints in zip(toys, (True, False), strict=True)
    ]
    (y, count), (floats, none) = (products(toy, x) for toy in toys)
    assert (count, none) == (wanted, 0)  # the subclass computes as it did
    # A product rounded otherwise may fall on the other side of a step of the next input.
    step = Range(-3.0, 4.0).scale(activation_bits)
    assert (y - floats).abs().max() < 2 * step
    assert ((y - floats).abs() > 1e-4).float().mean() < 0.05
    assert (y - full).abs().max() > 1e-3
    for switch in switches:
        switch.restore()
    again, count = products(toys[0], x)
    assert count == 0
    assert torch.equal(again, full)


def test_one_model_after_another_leaves_nothing_behind():
    toy, x = Toy(Wide()), torch.randn(1, 20, 192)
    answers = {}
    for bits, ints in ((8, True), (3, False), (3, True), (8, True), (3, False)):
        installed(toy, bits, 8, integers=ints)
        y, count = products(toy, x)
        assert count == ints
        assert torch.equal(answers.setdefault((bits, ints), y), y)
    assert len(answers) == 3


def test_a_head_in_integers_beside_its_tied_table(monkeypatch):
    monkeypatch.setattr(integers, "FEW", 1)
    toy = Toy(Tied())
    words = torch.tensor([[1, 5, 11]])
    installed(toy, 8, 8, integers=True)
    y, count = products(toy, words)
    assert count == 2
    installed(toy, 8, 8, integers=False)
    assert (y - products(toy, words)[0]).abs().max() < 0.05


def test_a_process_unpacks_codes_once(tmp_path):
    toy = Toy(Wide())
    bank = LayerBank(
        Switch(toy).full_weights(), toy.layers, "per_channel", BlobStore(tmp_path / "bank")
    )
    cache = WeightCache(bank.store)
    place = (bank.name(0, 4), toy.layers[0], 4, "per_channel")
    assert cache.integers(*place) is cache.integers(*place)
    assert cache.weight(*place) is cache.weight(*place)
    assert cache.integers(bank.name(0, 9), toy.layers[0], 9, "per_channel") is None
