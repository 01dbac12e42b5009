from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from quant_toys import Talker, Toy, clips, registered, rounded, talk, thorough
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedsim.errors import FedsimError
from fedsim.quant.activations import FLOAT, InputFormat, Range, make_range
from fedsim.quant.calibration import (
    CANDIDATES,
    TRIES,
    LayerWeights,
    calibrate_layer,
    cosine_macs,
    cosine_score,
    fisher_score,
    search,
    search_macs,
    shrink,
)
from fedsim.quant.calibrators import CALIBRATORS, Calibrator, Needs, needs, on_user_data
from fedsim.quant.granularities import PER_CHANNEL
from fedsim.quant.layers import Layer
from fedsim.quant.model import Batch
from fedsim.quant.observe import LayerObservation, observe
from fedsim.quant.rounding.independent import quantize_weight
from fedsim.quant.weights import dequantize_weight

SHARES = range(1, 101)


def draw(kind: str, rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    if kind == "normal":
        return rng.standard_normal((n, k))
    if kind == "laplace":
        return rng.laplace(size=(n, k))
    if kind == "student":  # the largest of 16,000 is some 100 deviations out
        return rng.standard_t(2, (n, k))
    if kind == "cauchy":
        return rng.standard_cauchy((n, k))
    if kind == "gelu":
        return F.gelu(torch.from_numpy(2 * rng.standard_normal((n, k)))).numpy()
    x = rng.standard_normal((n, k))
    if kind == "loud channel":
        x[:, 3] *= 40
    if kind == "spike":
        x[7, 7] = 60.0
    return x


KINDS = ["normal", "laplace", "student", "cauchy", "gelu", "loud channel", "spike"]


class Case:
    """A linear layer, rows of its input, and the cosine of every share by float64 arithmetic."""

    def __init__(
        self, kind: str, bits: int, *, seed: int, k: int = 64, n: int = 48, weight_bits: int = 4
    ) -> None:
        rng = np.random.default_rng([seed, *map(ord, kind)])
        self.bits = bits
        self.rows = torch.from_numpy(draw(kind, rng, 256, k).astype(np.float32))[:, None]
        self.layer = Layer("layer", "linear", (n, k))
        full = torch.from_numpy(rng.standard_normal((n, k)).astype(np.float32) / k**0.5)
        bias = torch.from_numpy(0.1 * rng.standard_normal(n).astype(np.float32))
        quantized = dequantize_weight(quantize_weight(full, weight_bits, PER_CHANNEL))
        self.weights = LayerWeights(full, quantized, bias)
        self.seen = LayerObservation(float(self.rows.min()), float(self.rows.max()), self.rows)
        self.target = F.linear(self.rows[:, 0].double(), full.double(), bias.double())

    def answer(self, share: int) -> torch.Tensor:
        """Return the outputs of the quantized layer, float64."""
        low, high = min(self.seen.low, 0.0) * share / 100, max(self.seen.high, 0.0) * share / 100
        x = torch.from_numpy(rounded(self.rows[:, 0].numpy(), low, high, self.bits))
        return F.linear(x, self.weights.quantized.double(), self.weights.bias.double())

    def cosine(self, share: int) -> float:
        return float(
            F.cosine_similarity(self.target.flatten(), self.answer(share).flatten(), dim=0)
        )


def chosen_range(
    name: str, layer: Layer, module: nn.Module, seen: LayerObservation, weight, bits: int
) -> Range:
    """Return the static range that a calibrator finds; the input is quantized to `bits` over it."""
    how = calibrate_layer(name, layer, module, seen, lambda: weight, bits)
    assert how.bits == bits
    assert how.range is not None
    return how.range


def share_of(seen: LayerObservation, rng: Range) -> int:
    """Return which share of the observed range `rng` is; fail when it is none."""
    (share,) = [s for s in SHARES if rng == make_range(seen.low * s / 100, seen.high * s / 100)]
    return share


@pytest.mark.parametrize("kind", KINDS)
def test_cosine_is_as_good_as_an_exhaustive_search(kind):
    for bits, seed in product((4, 8), (0, 1)):
        case = Case(kind, bits, seed=seed, weight_bits=3 + 2 * seed)
        every = [case.cosine(s) for s in SHARES]
        score = cosine_score(case.layer, case.seen, case.weights, bits)
        for share in (100, 63, 20, 5):
            assert score(shrink(case.seen, share)) == pytest.approx(every[share - 1], abs=2e-5)
        chosen = chosen_range(
            "cosine", case.layer, owner(case), case.seen, case.weights.quantized, bits
        )
        mine = every[share_of(case.seen, chosen) - 1]
        assert max(every) - mine <= 1e-4
        assert mine >= every[99] - 1e-6  # no worse than min-max


def test_cosine_cuts_a_spike_and_leaves_a_flat_range_alone():
    spike = Case("spike", 4, seed=0)
    chosen = search(spike.seen, cosine_score(spike.layer, spike.seen, spike.weights, 4))
    assert chosen.high < 0.6 * spike.seen.high
    flat = Case("normal", 16, seed=0)
    chosen = search(flat.seen, cosine_score(flat.layer, flat.seen, flat.weights, 16))
    assert share_of(flat.seen, chosen) >= 97


def owner(case: Case) -> nn.Module:
    n, k = case.layer.shape
    module = nn.Linear(k, n)
    module.weight.data, module.bias.data = case.weights.full, case.weights.bias
    return module


@thorough
@given(st.sampled_from([1, *range(4, 101)]), st.integers(0, 99))
def test_search_finds_a_peak_wherever_it_is(peak, seed):
    """A curve with one top and ripples a hundred times smaller than its rise."""
    seen = LayerObservation(-1.0, 2.0)
    ripple = np.random.default_rng(seed).uniform(-1e-4, 1e-4, 101)
    tried = []

    def score(rng: Range) -> float:
        share = share_of(seen, rng)
        tried.append(share)
        return -abs(np.log(share / peak)) * 0.05 + ripple[share]

    chosen = share_of(seen, search(seen, score))
    best = max(-abs(np.log(s / peak)) * 0.05 + ripple[s] for s in SHARES)
    if peak >= 4:
        assert best - (-abs(np.log(chosen / peak)) * 0.05 + ripple[chosen]) <= 2e-4
    else:  # a range of which a hundredth is best: within a few hundredths
        assert chosen <= 4
    assert len(tried) == len(set(tried)) <= 26


def test_a_tie_is_the_widest_range():
    seen = LayerObservation(-1.0, 2.0)
    assert search(seen, lambda rng: 0.0) == make_range(-1.0, 2.0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_cosine_of_a_vocabulary_head(bias, bits):
    """Far more outputs than inputs: worked out through the Gram matrix."""
    case = Case("laplace", bits, seed=1, k=12, n=700)
    weights = case.weights
    if not bias:
        weights = LayerWeights(weights.full, weights.quantized, None)
    gram = cosine_score(case.layer, case.seen, weights, bits)
    target = F.linear(case.rows[:, 0], weights.full, weights.bias).double()
    for share in (100, 71, 34, 8):
        rng = shrink(case.seen, share)
        x = rounded(case.rows[:, 0].numpy(), rng.low, rng.high, bits)
        answer = torch.from_numpy(x) @ weights.quantized.double().T
        answer = answer if weights.bias is None else answer + weights.bias.double()
        direct = F.cosine_similarity(target.flatten(), answer.flatten(), dim=0)
        assert gram(rng) == pytest.approx(float(direct), abs=1e-5)


@pytest.mark.parametrize(("k", "n"), [(12, 700), (40, 200), (64, 48), (64, 8)])
def test_a_search_costs_what_its_macs_say(k, n):
    """Counted by torch; through the Gram matrix where that costs less."""
    case = Case("laplace", 8, seed=1, k=k, n=n)
    weights = LayerWeights(case.weights.full, case.weights.quantized, None)
    importance = torch.ones(256, n)
    seen = LayerObservation(case.seen.low, case.seen.high, case.rows, importance)
    counted = {}
    for make in (cosine_score, fisher_score):
        with FlopCounterMode(display=False) as flops:
            score = make(case.layer, seen, weights, 8)
            for share in range(1, TRIES + 1):
                score(shrink(seen, share))
        counted[make] = flops.get_total_flops() // 2
    assert counted[fisher_score] == search_macs(case.layer, 1000.0) == (1 + TRIES) * 256 * k * n
    assert counted[cosine_score] == pytest.approx(cosine_macs(case.layer, 1000.0), rel=1e-9)
    assert counted[cosine_score] <= counted[fisher_score]
    assert (counted[cosine_score] < counted[fisher_score] / 5) == (n > 10 * k)
    assert search_macs(case.layer, 9.0) == (1 + TRIES) * 9 * k * n  # fewer frames than rows kept


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_score_of_a_convolution_is_that_of_its_outputs(groups):
    """Quantize the whole input, run torch's convolution, compare all frames."""
    torch.manual_seed(groups)
    module = nn.Conv1d(8, 8, 3, stride=2, padding=1, groups=groups)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    toy = Toy(Net())
    x = torch.randn(2, 8, 41)
    with torch.no_grad():
        seen = observe(toy, [Batch({"x": x})])["layer"]
        quantized = dequantize_weight(quantize_weight(module.weight, 4, PER_CHANNEL))
        weights = LayerWeights(module.weight, quantized, module.bias)
        score = cosine_score(toy.layers[0], seen, weights, 6)
        target = module(x)
        for share in (100, 60, 30):
            low, high = float(x.min()) * share / 100, float(x.max()) * share / 100
            rough = torch.from_numpy(rounded(x.numpy(), low, high, 6)).float()
            answer = F.conv1d(rough, quantized, module.bias, 2, 1, 1, groups)
            expected = F.cosine_similarity(target.flatten(), answer.flatten(), dim=0)
            assert score(shrink(seen, share)) == pytest.approx(float(expected), abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [4, 8])
def test_hessian_is_as_good_as_an_exhaustive_search(kind, bits):
    case = Case(kind, bits, seed=3, weight_bits=8)
    importance = torch.from_numpy(np.random.default_rng(5).exponential(size=(256, 48)) ** 3)
    seen = LayerObservation(case.seen.low, case.seen.high, case.rows, importance.float())

    def loss(share: int) -> float:
        return float((importance * (case.target - case.answer(share)) ** 2).sum())

    score = fisher_score(case.layer, seen, case.weights, bits)
    for share in (100, 40, 10):
        assert -score(shrink(seen, share)) == pytest.approx(loss(share), rel=2e-3)
    chosen = chosen_range("hessian", case.layer, owner(case), seen, case.weights.quantized, bits)
    every = [loss(s) for s in SHARES]
    mine = every[share_of(seen, chosen) - 1]
    assert mine <= min(every) * 1.05
    assert mine <= every[99] * 1.001


def test_hessian_follows_the_fisher():
    """Only rows that matter count: where they hold the outliers, the outliers are kept."""
    case = Case("spike", 4, seed=0, weight_bits=8)
    spiky = torch.zeros(256, 48)
    spiky[7] = 1.0
    calm = 1.0 - spiky
    chosen = {}
    for name, importance in {"spiky": spiky, "calm": calm}.items():
        seen = LayerObservation(case.seen.low, case.seen.high, case.rows, importance)
        chosen[name] = search(seen, fisher_score(case.layer, seen, case.weights, 4)).high
    assert chosen["spiky"] > 0.9 * case.seen.high
    assert chosen["calm"] < 0.3 * case.seen.high


@pytest.mark.parametrize("name", ["minmax", "none"])
def test_minmax_and_none_are_the_observed_range(name):
    case = Case("student", 8, seed=0)
    bare = LayerObservation(case.seen.low, case.seen.high)
    chosen = chosen_range(name, case.layer, owner(case), bare, case.weights.quantized, 8)
    assert chosen == Range(float(case.rows.min()), float(case.rows.max()))
    positive = LayerObservation(0.5, 3.0)
    chosen = chosen_range(name, case.layer, owner(case), positive, case.weights.quantized, 8)
    assert chosen == Range(0.0, 3.0)


STATIC = [name for name in CALIBRATORS if CALIBRATORS[name].static]


@pytest.mark.parametrize("name", STATIC)
def test_every_range_is_a_share_of_the_observed_one(name):
    toy = Toy(Talker())
    batches = [talk(clips([61, 90, 47])), talk(clips([80, 80], seed=1))]
    wanted = needs([name])
    seen = observe(toy, batches, rows=wanted.rows, fisher=wanted.fisher)
    for layer, bits in product(toy.layers, (4, 8, 16)):
        module = toy.module.get_submodule(layer.name)
        quantized = dequantize_weight(quantize_weight(module.weight, 4, PER_CHANNEL))
        chosen = chosen_range(name, layer, module, seen[layer.name], quantized, bits)
        assert 1 <= share_of(seen[layer.name], chosen) <= CANDIDATES
        assert chosen.low <= 0.0 <= chosen.high
        assert not isinstance(chosen.low, torch.Tensor)


@pytest.mark.parametrize("name", STATIC)
def test_an_input_of_zeros(name):
    layer = Layer("layer", "linear", (3, 4))
    rows = torch.zeros(9, 1, 4)
    seen = LayerObservation(0.0, 0.0, rows, torch.zeros(9, 3))
    for bias in (True, False):
        module = nn.Linear(4, 3, bias=bias)
        assert chosen_range(name, layer, module, seen, module.weight.detach(), 8) == Range(0, 0)


def never() -> torch.Tensor:
    raise AssertionError("nobody reads the weight")


@pytest.mark.parametrize(
    ("name", "linear"), [("dynamic", InputFormat(8)), ("float", InputFormat(0))]
)
def test_without_static_ranges_nothing_is_observed(name, linear):
    """Not even the weight is unpacked; only inputs of linear layers have vectors of their own."""
    toy = Toy(Talker())
    assert needs([name]) == Needs()
    for layer in toy.layers:
        module = toy.module.get_submodule(layer.name)
        how = calibrate_layer(name, layer, module, None, never, 8)
        assert how == (linear if layer.kind == "linear" else FLOAT)
        assert how.range is None
    table = Layer("table", "embedding", (12, 4))
    assert calibrate_layer(name, table, nn.Embedding(12, 4), None, never, 8) == FLOAT


def test_needs():
    assert needs([]) == Needs(ranges=False, rows=False, fisher=False)
    assert needs(["dynamic", "float"]) == Needs(ranges=False, rows=False, fisher=False)
    assert needs(["none", "minmax"]) == Needs(ranges=True, rows=False, fisher=False)
    assert needs(["minmax", "cosine"]) == Needs(ranges=True, rows=True, fisher=False)
    assert needs(["cosine", "hessian"]) == Needs(ranges=True, rows=True, fisher=True)
    assert needs(iter(["hessian"])) == Needs(ranges=True, rows=True, fisher=True)
    with pytest.raises(FedsimError, match="did you mean 'cosine'"):
        needs(["minmax", "cosin"])


def test_which_calibrations_look_at_the_users_clips():
    assert on_user_data(CALIBRATORS) == {"cosine", "hessian", "minmax"}
    assert on_user_data(["none", "dynamic", "float"]) == set()


def test_every_calibrator_says_what_it_is():
    assert CALIBRATORS.names() == ["cosine", "dynamic", "float", "hessian", "minmax", "none"]
    assert all(text.endswith(".") for text in CALIBRATORS.describe().values())  # whole sentences


def test_a_calibrator_of_ones_own():
    def half(layer, seen, weights, bits):
        return shrink(seen, 50)

    entry = Calibrator(half, summary="Half.", meaning="half the range", rows=False)
    case = Case("normal", 8, seed=0)
    with registered(CALIBRATORS, "half", entry):
        assert needs(["half"]) == Needs(ranges=True)
        chosen = chosen_range("half", case.layer, owner(case), case.seen, case.weights.quantized, 8)
        assert calibrate_layer("half", case.layer, owner(case), None, never, 8) == FLOAT
    assert share_of(case.seen, chosen) == 50
