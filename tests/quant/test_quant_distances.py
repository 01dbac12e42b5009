"""What a rounded weight changes: each measure against whole outputs in float64, worked out by other
means."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quant_toys import FORMATS, PER_CHANNEL, Echo, Named, Talker, Tied, Toy, clips, talk, thorough
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fedsim.quant.distances import BINS, BITS, DistanceSpectrum, DistanceSums, OutputPairs
from fedsim.quant.layers import plain_weights
from fedsim.quant.measures import MEASURES
from fedsim.quant.model import Batch
from fedsim.quant.rounding.independent import quantize_weight, round_weight
from fedsim.quant.sensitivity import sense
from fedsim.quant.weights import dequantize_weight


def histogram(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Every value's share in every bin: a hat of one bin's width about each centre."""
    at = np.clip((values - low) / (high - low) * 63, 0, 63)
    counts = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(64))).sum(0)
    return (counts + 0.5) / (values.size + 32)


def divergence(y: np.ndarray, y_q: np.ndarray) -> float:
    p, q = (histogram(v.ravel(), y.min(), y.max()) for v in (y, y_q))
    return float(np.sum(p * np.log(p) - p * np.log(q)))


EXACT = {
    "l1": lambda y, q: np.mean(np.abs(q - y)),
    "l2": lambda y, q: np.mean([np.sqrt(sum(d * d)) for d in q - y]),
    "frobenius": lambda y, q: np.sqrt(np.sum((q - y) ** 2) / np.sum(y**2)),
    "spectral": lambda y, q: np.linalg.norm(q - y, 2) / np.linalg.norm(y, 2),
    "kl": divergence,
}
LENGTHS = [61, 90, 47, 33, 80]
TOLERANCE = 2e-5
"""Float32 against float64; and of batches that are split otherwise."""


def rounded(weight: torch.Tensor) -> torch.Tensor:
    return dequantize_weight(quantize_weight(weight, 4, PER_CHANNEL))


@torch.no_grad()
def rows_of(toy: Toy, name: str, batches: list[Batch]) -> list[np.ndarray]:
    """Y and Y_q of a layer, every frame that counts, from a float64 copy of the network: Y_q is
    what a second copy of the layer answers to what the first was given."""
    network = copy.deepcopy(toy.module).double()
    layer = network.get_submodule(name)
    other = copy.deepcopy(layer)
    other.weight = nn.Parameter(rounded(toy.module.get_submodule(name).weight).double())
    calls: list[tuple] = []
    layer.register_forward_hook(lambda m, *call: calls.append(call), with_kwargs=True)
    rows: list[list[torch.Tensor]] = [[], []]
    for batch in batches:
        x = batch.inputs["x"]
        network(x.double() if x.is_floating_point() else x)
        frames = batch.speech.get(name, batch.frames_out.get(name))
        for args, kwargs, y in calls:
            for kept, out in zip(rows, (y, other(*args, **kwargs)), strict=True):
                for i, row in enumerate(out):
                    row = row.T if isinstance(layer, nn.Conv1d) else torch.atleast_2d(row)
                    kept.append(row if frames is None else row[: int(frames[i])])
        calls.clear()
    return [torch.cat(kept).numpy() for kept in rows]


def exact(toy: Toy, batches: list[Batch], measure: str) -> list[float]:
    return [float(EXACT[measure](*rows_of(toy, layer.name, batches))) for layer in toy.layers]


class Table(nn.Module):
    """An embedding of its own, a wide linear layer that is called twice, a narrow one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(11, 6)
        self.same = nn.Linear(6, 6, bias=False)
        self.wide = nn.Linear(6, 40)
        self.down = nn.Linear(40, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.same(self.same(self.table(x)) - 1))
        return self.down(torch.tanh(self.wide(hidden)).mean(1))  # (B, C): no frames


def test_the_probe():
    assert (BITS, BINS) == (4, 64)
    assert sorted(EXACT) == [name for name in MEASURES if MEASURES[name].change is not None]


@thorough
@given(
    st.sampled_from([(5, 7), (6, 2, 3)]),
    st.integers(2, 16),
    st.sampled_from(FORMATS),
    st.integers(0, 99),
)
def test_a_rounded_weight_is_one_that_was_packed_and_unpacked(shape, bits, weight_format, seed):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    weight[1] = 0
    before = weight.clone()
    packed = quantize_weight(weight, bits, weight_format)
    assert torch.equal(round_weight(weight, bits, weight_format), dequantize_weight(packed))
    assert torch.equal(weight, before)


def test_by_hand():
    """Two inputs, one output: W = (7, 2.4) becomes (7, 2); the bias is no part of the change."""
    toy = Toy(nn.Sequential(nn.Linear(2, 1)))
    toy.module[0].weight.data = torch.tensor([[7.0, 2.4]])
    toy.module[0].bias.data = torch.tensor([1.0])
    toy.forward = lambda batch: toy.module(batch.inputs["x"])
    batch = Batch({"x": torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, -2.0]]])})
    # Y = 8, 3.4, -10.8; D = 0, -0.4, 0.8.
    ratio = (0.8 / (8**2 + 3.4**2 + 10.8**2)) ** 0.5
    for measure, value in {"l1": 0.4, "l2": 0.4, "frobenius": ratio, "spectral": ratio}.items():
        assert sense(toy, [batch], measure)[0] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("measure", EXACT)
def test_exact_with_padding_present(measure):
    toy = Toy(Talker())
    batches = [talk(clips(LENGTHS[:3])), talk(clips(LENGTHS[3:], seed=1))]
    values = sense(toy, iter(batches), measure)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, exact(toy, batches, measure), rtol=TOLERANCE)
    # Padding would have shown: it is far louder than the clips.
    bare = [Batch(b.inputs) for b in batches]
    np.testing.assert_allclose(sense(toy, bare, measure), exact(toy, bare, measure), rtol=TOLERANCE)
    assert (np.abs(sense(toy, bare, measure) / values - 1) > 0.01).all()


@pytest.mark.parametrize("measure", EXACT)
def test_padded_batches_are_single_clips_in_any_order(measure):
    audio = clips(LENGTHS, seed=2)
    toy = Toy(Talker())
    single = sense(toy, [talk([c]) for c in audio], measure)
    for split in ([5], [2, 3], [1, 3, 1]):
        ends = np.cumsum(split)
        groups = [audio[e - n : e] for e, n in zip(ends, split, strict=True)]
        together = sense(toy, [talk(g) for g in groups], measure)
        np.testing.assert_allclose(together, single, rtol=TOLERANCE)
    backwards = sense(toy, [talk([c]) for c in audio[::-1]], measure)
    np.testing.assert_allclose(backwards, single, rtol=TOLERANCE)
    again = sense(toy, [talk([c]) for c in audio], measure)
    np.testing.assert_array_equal(again, single)


@pytest.mark.parametrize("measure", EXACT)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_where_speech_ends_before_the_frames_do_only_speech_counts(kind, measure):
    torch.manual_seed(4)
    toy = Toy(Echo(6, kind))
    toy.module.layer = nn.Linear(6, 6) if kind == "linear" else nn.Conv1d(6, 6, 1)
    x = torch.randn(3, 30, 6)
    frames, speech = torch.tensor([30, 8, 5]), torch.tensor([15, 2, 0])
    x = x if kind == "linear" else x.transpose(1, 2).contiguous()
    batch = Batch({"x": x}, {"layer": frames}, {"layer": frames}, speech={"layer": speech})
    toy = Toy(toy.module)
    value = sense(toy, [batch], measure)
    np.testing.assert_allclose(value, exact(toy, [batch], measure), rtol=TOLERANCE)
    assert rows_of(toy, "layer", [batch])[0].shape == (17, 6)


@pytest.mark.parametrize("measure", EXACT)
def test_tables_tied_weights_and_layers_that_are_called_twice(measure):
    ids = [torch.tensor([[0, 3, 5], [7, 7, 1]]), torch.tensor([[2, 6]])]
    batches = [Batch({"x": x}) for x in ids]
    toy = Toy(Table())
    assert [layer.kind for layer in toy.layers] == ["embedding", "linear", "linear", "linear"]
    np.testing.assert_allclose(
        sense(toy, batches, measure), exact(toy, batches, measure), rtol=TOLERANCE
    )
    tied = Toy(Tied())
    assert [layer.name for layer in tied.layers] == ["head", "mid"]
    np.testing.assert_allclose(
        sense(tied, batches, measure), exact(tied, batches, measure), rtol=TOLERANCE
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (8, 8)])
def test_singular_values_from_the_smaller_side(shape, bias):
    torch.manual_seed(5)
    toy = Toy(Echo(1))
    toy.module.layer = nn.Linear(*shape, bias=bias)
    toy = Toy(toy.module)
    batches = [Batch({"x": torch.randn(2, n, shape[0]) + 0.3}) for n in (9, 30)]
    np.testing.assert_allclose(
        sense(toy, batches, "spectral"), exact(toy, batches, "spectral"), rtol=TOLERANCE
    )
    gauge = DistanceSpectrum("linear", toy.module.layer, 1)
    with torch.inference_mode():
        for batch in batches:
            x = batch.inputs["x"]
            gauge.see((x,), {}, toy.module.layer(x), None)
    into, out = shape[0] + bias, shape[1]
    expected = [(into, into)] if into**2 <= 2 * out**2 else [(out, out)] * 2
    assert [tuple(gram.shape) for gram in gauge.grams] == expected
    weight = toy.module.layer.weight
    assert sum(gram.nbytes for gram in gauge.grams) <= 2.2 * (weight.nbytes + 4 * out)


class Doubled(nn.Linear):
    """A linear layer whose answer is not its input times its weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.tanh(2 * super().forward(input))


@pytest.mark.parametrize("measure", EXACT)
@pytest.mark.parametrize("cls", [nn.Linear, Doubled])
def test_layers_of_other_classes_and_calls_by_keyword(measure, cls):
    torch.manual_seed(6)
    toy = Toy(Named(cls(4, 9)))
    batches = [Batch({"x": torch.randn(2, 12, 4)})]
    np.testing.assert_allclose(
        sense(toy, batches, measure), exact(toy, batches, measure), rtol=TOLERANCE
    )


def test_a_weight_that_is_a_buffer():
    """What folding the weight norm of a frozen layer leaves."""
    torch.manual_seed(8)
    conv = weight_norm(nn.Conv1d(2, 4, 3)).requires_grad_(False)
    toy = Toy(plain_weights(Named(conv)))
    assert "weight" in dict(toy.module.layer.named_buffers())
    batches = [Batch({"x": torch.randn(2, 2, 9)})]
    for measure in EXACT:
        value = sense(toy, batches, measure)[0]
        with torch.no_grad():
            y, y_q = (
                torch.conv1d(batches[0].inputs["x"], w, conv.bias).transpose(1, 2).reshape(-1, 4)
                for w in (conv.weight, rounded(conv.weight))
            )
        expected = EXACT[measure](y.double().numpy(), y_q.double().numpy())
        assert value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("measure", EXACT)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_weight_that_four_bits_hold_changes_nothing(kind, measure):
    toy = Toy(Echo(8, kind))
    toy.module.layer.weight.data *= 7  # the largest code, with the scale 1
    for x in (torch.randn(2, 8, 8), torch.zeros(2, 8, 8), torch.full((2, 8, 8), 0.1)):
        assert abs(sense(toy, [Batch({"x": x})], measure)[0]) < 1e-12


def test_divergence_where_the_histograms_part():
    y, far = torch.linspace(0, 1, 1000)[:, None], torch.full((1000, 1), 7.0)
    pairs = OutputPairs("linear", nn.Linear(1, 1), 10_000)
    pairs.add(y, far)
    p, q = histogram(y.double().numpy().ravel(), 0, 1), np.full(BINS, 0.5)
    q[-1] += 1000
    assert pairs.divergence() == pytest.approx((p * np.log(p / (q / 1032))).sum(), rel=1e-5)
    pairs = OutputPairs("linear", nn.Linear(1, 1), 10_000)
    pairs.add(torch.full((9, 1), 2.0), torch.full((9, 1), 2.5))  # Y has no range at all
    q = np.full(BINS, 0.5)
    q[0] = 9.5
    assert pairs.divergence() == pytest.approx((q * np.log(q / np.roll(q, -1))).sum() / 41)


def test_a_value_on_the_edge_of_a_bin_does_not_jump():
    def of(shift: float) -> float:
        pairs = OutputPairs("linear", nn.Linear(1, 1), 1000)
        y = torch.linspace(0, 63, 64, dtype=torch.float64)[:, None]
        pairs.add(y, y * 0.9 + shift)
        return pairs.divergence()

    assert of(1e-6) == pytest.approx(of(-1e-6), rel=1e-4)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_memory_is_bounded_and_a_thinned_sample_is_near(kind):
    torch.manual_seed(7)
    toy = Toy(Echo(1, kind))
    toy.module.layer = nn.Linear(64, 64) if kind == "linear" else nn.Conv1d(64, 64, 1)
    # All but the diagonal is rounded away, and with it a quarter of the variance.
    small = torch.full((64, 64), 0.07).fill_diagonal_(1.0)
    toy.module.layer.weight.data = small.reshape(toy.module.layer.weight.shape)
    toy = Toy(toy.module)
    shape = (2, 100, 64) if kind == "linear" else (2, 64, 100)
    batches = [Batch({"x": torch.randn(shape)}) for _ in range(9)]
    (whole,) = exact(toy, batches, "kl")
    chance = 40 / (1 << 13)  # a sample is at least half full
    assert sense(toy, batches, "kl", capacity=1 << 14)[0] == pytest.approx(whole, abs=chance)
    assert whole > 3 * chance
    single = [Batch({"x": b.inputs["x"][i : i + 1]}) for b in batches for i in range(2)]
    few, many = (sense(toy, b, "kl", capacity=1 << 14) for b in (batches, single))
    np.testing.assert_allclose(few, many, rtol=TOLERANCE)  # clip by clip the places are the same
    gauges = [
        cls(kind, toy.module.layer, 1 << 10)
        for cls in (OutputPairs, DistanceSums, DistanceSpectrum)
    ]
    kept = []
    with torch.inference_mode():
        for batch in batches:
            x = batch.inputs["x"]
            for gauge in gauges:
                gauge.see((x,), {}, toy.module.layer(x), None)
            kept.append(sum(g.nbytes for g in gauges[2].grams))
            assert 1 << 9 <= len(gauges[0].y.values) == len(gauges[0].y_q.values) <= 1 << 10
    assert len(set(kept)) == 1
    # The same places of both: Y and Y_q stay side by side.
    change = gauges[0].y_q.values - gauges[0].y.values
    assert np.abs(change).mean() < 0.7 * np.abs(gauges[0].y.values).mean()
