"""Linear layers in integers against sums in int64 and products in double precision."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quant_toys import Tied, Toy, thorough
from torch import nn

from fedsim.quant.activations import InputFormat, Range, quantize_activation
from fedsim.quant.bank import BlobStore, LayerBank, WeightCache
from fedsim.quant.granularities import PER_CHANNEL, PER_TENSOR, WeightFormat
from fedsim.quant.integers import (
    MIN_WEIGHTS,
    as_integers,
    bytes_are_fast,
    integer_linear,
    integers_of,
)
from fedsim.quant.layers import Layer
from fedsim.quant.packing import unpack
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.switch import Switch, switch_of
from fedsim.quant.weights import PackedWeight, dequantize_weight

pytestmark = pytest.mark.skipif(
    not bytes_are_fast(), reason="this processor multiplies bytes no faster than floats"
)


NEAR = Range(-3.0, 4.0)


def by_definition(
    x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, rng: Range, bits: int
) -> np.ndarray:
    """The sum in int64 and one product, in double precision."""
    n, k = packed.shape
    q = unpack(packed.payload, packed.bits, n * k).astype(np.int64).reshape(n, k)
    q -= 1 << (packed.bits - 1)
    steps = quantize_activation(x, rng, bits).double().numpy() / np.float32(rng.scale(bits))
    sums = np.rint(steps).astype(np.int64) @ q.T
    y = sums * float(np.float32(rng.scale(bits))) * packed.scales[:, 0].astype(float)
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
    packed = quantize_weight(
        torch.randn(n, k, generator=generator), bits, WeightFormat(granularity)
    )
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
    codes, one = np.full(24 * 4096, 255, np.uint8), np.ones((1, 1), np.float16)
    packed = PackedWeight((24, 4096), 8, PER_TENSOR, codes, one)
    product = integer_linear(as_integers(packed), None, Range(-1.0, 254.0), 8)
    with torch.inference_mode():
        for rows in (1, 3, 200):
            assert (product(torch.full((rows, 4096), 254.0)) == 4096 * 254 * 127).all()


def test_a_clip_is_answered_alike_alone_and_in_a_batch():
    packed = quantize_weight(torch.randn(192, 256), 5, PER_CHANNEL)
    forward = integer_linear(as_integers(packed), torch.randn(192), Range(-2.0, 3.0), 8)
    x = torch.randn(4, 123, 256)
    with torch.inference_mode():
        together = forward(x)
        alone = [forward(x[i : i + 1, :n])[0] for i, n in enumerate((123, 60, 7, 1))]
    for clip, same in zip(alone[:3], together, strict=False):
        assert torch.equal(clip, same[: len(clip)])
    # A single row has a kernel of its own, which multiplies the scales in another order.
    torch.testing.assert_close(alone[3], together[3, :1], rtol=1e-6, atol=1e-5)


@pytest.fixture
def slow_bytes(monkeypatch):
    """A setting of oneDNN under which floats have to do."""
    monkeypatch.setenv("ONEDNN_CACHE_CONTEXT_UNSAFE", "1")
    bytes_are_fast.cache_clear()
    yield
    bytes_are_fast.cache_clear()


CASES = [
    (Layer("a", "linear", (256, 256)), 8, True),
    (Layer("a", "linear", (256, 256)), 2, True),
    (Layer("a", "linear", (256, 256)), 9, False),
    (Layer("a", "linear", (1, MIN_WEIGHTS)), 8, True),
    (Layer("a", "linear", (1, MIN_WEIGHTS - 1)), 8, False),
    (Layer("a", "linear", (1, 70_000)), 8, False),  # a sum could leave int32
    (Layer("a", "embedding", (256, 256)), 8, False),
    (Layer("a", "conv1d", (256, 256, 1)), 8, False),
]


def served(layer: Layer, bits: int, **options: int) -> bool:
    packed = quantize_weight(torch.randn(layer.shape), bits, PER_CHANNEL)
    return integers_of(layer, packed, **options) is not None


def test_which_layers_they_serve():
    assert [served(layer, bits) for layer, bits, _ in CASES] == [expected for *_, expected in CASES]
    small = Layer("a", "linear", (4, 4))
    assert not served(small, 8)
    assert served(small, 8, min_weights=16)
    assert not served(small, 8, min_weights=17)


def test_they_serve_no_layer_where_bytes_are_slow(slow_bytes):
    assert not any(served(layer, bits) for layer, bits, _ in CASES)


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


def installed(
    toy: Toy,
    bits: int,
    activation_bits: int,
    *,
    integers: bool,
    rng: Range = NEAR,
    min_weights: int = MIN_WEIGHTS,
) -> Switch:
    """Put a toy's own weights at `bits` in place; return its switch."""
    switch = switch_of(toy)
    full = switch.full_weights()
    packed = {
        layer.name: quantize_weight(full[layer.name], bits, PER_CHANNEL) for layer in toy.layers
    }
    codes = {
        layer.name: integers_of(layer, packed[layer.name], min_weights=min_weights)
        for layer in toy.layers
    }
    switch.install(
        {name: dequantize_weight(p) for name, p in packed.items()},
        switch.full_leftovers(),
        dict.fromkeys(packed, InputFormat(activation_bits, rng)),
        codes if integers else None,
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
    step = NEAR.scale(activation_bits)
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


def test_a_head_in_integers_beside_its_tied_table():
    toy = Toy(Tied())
    words = torch.tensor([[1, 5, 11]])
    installed(toy, 8, 8, integers=True, min_weights=1)
    y, count = products(toy, words)
    assert count == 2
    installed(toy, 8, 8, integers=False)
    assert (y - products(toy, words)[0]).abs().max() < 0.05


def test_a_process_reads_and_unpacks_a_layer_once(tmp_path):
    toy = Toy(Wide())
    store = BlobStore(tmp_path / "bank")
    bank = LayerBank(Switch(toy).full_weights(), toy.layers, PER_CHANNEL, store)
    cache = WeightCache(store)
    place = (bank.manifest((4, 8), "nearest")[0], toy.layers[0], 4, PER_CHANNEL)
    layer = cache.layer(*place)
    (store.folder / place[0]).unlink()  # so it is not read again
    assert cache.layer(*place) is layer
    assert layer.integers is not None
    assert layer.nbytes > layer.weight.nbytes + toy.layers[0].n_weights
    name = bank.manifest((9, 8), "nearest")[0]
    assert cache.layer(name, toy.layers[0], 9, PER_CHANNEL).integers is None


def test_no_model_meets_the_slow_reference_of_onednn():
    """It answers where the zero point is none: those layers stay with floats."""
    code = """
import torch
from quant_toys import Toy
from test_quant_integers import Wide, installed
from fedsim.quant.activations import Range
for low, counts in ((-3.0, (1, 100)), (0.0, (2, 101))):
    installed(Toy(toy := Wide()), 6, 8, integers=True, rng=Range(low, 4.0))
    with torch.inference_mode():
        for rows in counts:
            toy.first(torch.rand(rows, 192))
"""
    said = {**os.environ, "ONEDNN_VERBOSE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", code]
    lines = subprocess.run(words, env=said, capture_output=True, text=True, check=True).stdout
    matmuls = [line for line in lines.splitlines() if ",exec," in line and ",matmul," in line]
    rows = [line.split(",")[-2].split("x")[0] for line in matmuls]
    assert rows == ["1", "64", "1", "100"]  # `bytes_are_fast` first
    assert not any("ref" in line for line in matmuls)


def test_a_wrapped_layer_and_one_that_another_switch_left_are_let_be():
    toy, x = Toy(Wide()), torch.randn(1, 20, 192)
    plain = toy.module(x)
    toy.module.first.forward = lambda input: 0 * nn.Linear.forward(toy.module.first, input)
    switch = installed(toy, 8, 8, integers=True)
    assert products(toy, x)[1] == 0
    switch.restore()
    assert not torch.equal(toy.module(x), plain)  # still wrapped
    del toy.module.first.forward
    installed(toy, 8, 8, integers=True)
    del toy.module.first.forward  # as another switch of the same model would
    switch.restore()
    assert torch.equal(toy.module(x), plain)
