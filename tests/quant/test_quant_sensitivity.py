from __future__ import annotations

import gc
import tracemalloc
import weakref
from dataclasses import replace
from math import erf

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quant_toys import (
    Echo,
    Named,
    Talker,
    Tied,
    Toy,
    clips,
    n_hooks,
    outputs_of,
    registered,
    talk,
    thorough,
)
from torch import nn

from fedsim.errors import FedsimError
from fedsim.quant.measures import MEASURES, Measure
from fedsim.quant.model import Batch
from fedsim.quant.quantiles import QUANTILES, quantiles_of
from fedsim.quant.sensitivity import CAPACITY, Sensing, quantiles, sense


def lilliefors(y: np.ndarray) -> float:
    """Both sides of every step of the empirical distribution, against the error function."""
    ranked = np.sort(y, axis=None)
    upto, below = (np.searchsorted(ranked, ranked, s) / y.size for s in ("right", "left"))
    phi = np.array([(1 + erf(z / 2**0.5)) / 2 for z in (ranked - y.mean()) / y.std()])
    return max(np.abs(upto - phi).max(), np.abs(below - phi).max())


EXACT = {
    "median": lambda y: np.median(np.abs(y)),
    "mean": lambda y: np.mean(np.abs(y)),
    "max": np.max,
    "abs-max": lambda y: np.max(np.abs(y)),
    "std": np.std,
    "var": np.var,
    "normality": lilliefors,
}
"""Measures of the output alone; those of what a rounded weight changes: test_quant_distances.py."""
DISTANCES = [name for name in MEASURES if MEASURES[name].change is not None]
LENGTHS = [61, 90, 47, 33, 80]


def exact(toy: Toy, batches: list[Batch], measure: str) -> list[float]:
    """Every element of every layer's output that is speech, in float64."""
    values = []
    with torch.no_grad():
        seen = [outputs_of(toy.module, lambda b=b: toy.forward(b)) for b in batches]
    for layer in toy.layers:
        speech = []
        for batch, outputs in zip(batches, seen, strict=True):
            frames = batch.frames_out.get(layer.name)
            (out,) = outputs[layer.name]
            for i, row in enumerate(out):
                if layer.kind == "conv1d":
                    row = row.T
                speech.append(row if frames is None else row[: int(frames[i])])
        y = torch.cat([s.flatten() for s in speech]).double().numpy()
        values.append(float(EXACT[measure](y)))
    return values


def test_every_measure_is_known():
    assert MEASURES.names() == sorted([*EXACT, *DISTANCES])
    assert all(text.endswith(".") for text in MEASURES.describe().values())


@pytest.mark.parametrize("measure", EXACT)
def test_exact_with_padding_present(measure):
    toy = Toy(Talker())
    batches = [talk(clips(LENGTHS[:3])), talk(clips(LENGTHS[3:], seed=1))]
    values = sense(toy, iter(batches), measure)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, exact(toy, batches, measure), rtol=1e-6)
    # Padding would have shown: it is far louder than the clips.
    bare = [Batch(b.inputs) for b in batches]
    assert (np.abs(sense(toy, bare, measure) / values - 1) > 0.01).any()


@pytest.mark.parametrize("measure", EXACT)
def test_padded_batches_are_single_clips(measure):
    audio = clips(LENGTHS, seed=2)
    single = sense(Toy(Talker()), [talk([c]) for c in audio], measure)
    for split in ([5], [2, 3], [1, 3, 1]):
        ends = np.cumsum(split)
        groups = [audio[e - n : e] for e, n in zip(ends, split, strict=True)]
        together = sense(Toy(Talker()), [talk(g) for g in groups], measure)
        np.testing.assert_allclose(together, single, rtol=2e-5)
    backwards = sense(Toy(Talker()), [talk([c]) for c in audio[::-1]], measure)
    np.testing.assert_allclose(backwards, single, rtol=2e-5)


@pytest.mark.parametrize("measure", list(MEASURES))
def test_a_batch_that_is_alone_gives_the_same_to_the_bit(measure):
    batch = talk(clips(LENGTHS))
    for capacity in (40, 1 << 19):
        kept = sense(Toy(Talker()), [batch], measure, capacity=capacity)
        toy = Toy(Talker())
        at_once = sense(toy, [replace(batch, alone=True)], measure, capacity=capacity)
        np.testing.assert_array_equal(at_once, kept)
        assert toy.forwards == 1


def test_of_a_batch_that_is_alone_one_output_is_kept_at_a_time():
    toy = Toy(Named(nn.Sequential(*[nn.Linear(64, 64) for _ in range(8)])))
    toy.forward = lambda batch: toy.module.layer(batch.inputs["x"])
    batch = Batch({"x": torch.randn(1, 1000, 64)})
    output = 4 * 64 * 1000
    peaks = []
    for alone in (False, True):
        tracemalloc.start()
        sense(toy, [replace(batch, alone=alone)])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] > 8 * output
    assert peaks[1] < 3 * output


def test_a_batch_that_is_alone_has_none_beside_it():
    batch = replace(talk(clips(LENGTHS)), alone=True)
    with pytest.raises(ValueError, match="unmark it"):
        sense(Toy(Talker()), [batch, batch])


class Again(nn.Module):
    """Uses one linear map twice: what it answers first is not all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mid = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mid(3 * torch.tanh(self.mid(x)))))


def test_a_layer_that_answers_twice_is_seen_twice_in_a_batch_that_is_alone():
    batch = Batch({"x": torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(1))})
    toy = Toy(Again())
    found = sense(toy, [replace(batch, alone=True)])
    np.testing.assert_array_equal(found, sense(Toy(Again()), [batch]))
    with torch.inference_mode():
        first = toy.module.mid(batch.inputs["x"])
        both = torch.stack([first, toy.module.mid(3 * torch.tanh(first))])
    assert found[0] == pytest.approx(np.median(both.abs().numpy()), rel=1e-6)


def test_clips_of_one_length_need_no_frames():
    toy = Toy(Talker())
    audio = clips([64, 64, 64])
    batch = talk(audio)
    np.testing.assert_array_equal(sense(toy, [batch]), sense(toy, [Batch(batch.inputs)]))


def test_layers_in_the_order_of_the_model():
    toy = Toy(Talker())
    assert [layer.name for layer in toy.layers] == ["conv1", "conv2", "mid", "head"]
    before = sense(toy, [talk(clips(LENGTHS))], "std")
    toy.module.head.weight.data *= 3
    toy.module.head.bias.data *= 3
    after = sense(toy, [talk(clips(LENGTHS))], "std")
    np.testing.assert_allclose(after / before, [1, 1, 1, 3], rtol=1e-5)


def test_a_table_is_a_layer_too_and_tied_weights_are_one():
    toy = Toy(Tied())
    batch = Batch({"x": torch.tensor([[0, 3, 5], [7, 7, 1]])})
    assert [layer.name for layer in toy.layers] == ["head", "mid"]
    np.testing.assert_allclose(sense(toy, [batch]), exact(toy, [batch], "median"), rtol=1e-6)


@thorough
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9))
def test_median_of_odd_and_even_numbers(values):
    x = torch.tensor(values).reshape(1, -1, 1)
    assert sense(Toy(Echo(1)), [Batch({"x": x})])[0] == np.median(np.abs(np.float64(values)))


def loud_and_quiet(kind: str, frames: int, channels: int, seed: int) -> torch.Tensor:
    """Channels a decade apart: a sample that favours some of them is far off."""
    generator = torch.Generator().manual_seed(seed)
    gain = 10 ** torch.linspace(-0.5, 0.5, channels)
    y = torch.randn(2, frames, channels, generator=generator) * gain
    return y if kind == "linear" else y.transpose(1, 2).contiguous()


def error_of_the_median(kind: str, frames: int, seed: int, capacity: int = CAPACITY) -> float:
    batches = [Batch({"x": loud_and_quiet(kind, frames, 64, 3 * seed + i)}) for i in range(3)]
    whole = np.concatenate([b.inputs["x"].numpy().reshape(-1) for b in batches])
    assert whole.size > 2 * capacity
    value = sense(Toy(Echo(64, kind)), batches, capacity=capacity)[0]
    return value / float(np.median(np.abs(whole))) - 1


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_above_capacity_the_median_is_within_half_a_percent(kind):
    assert abs(error_of_the_median(kind, 6800, seed=1)) < 0.005


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_the_median_is_as_good_as_its_sample_allows(kind):
    """No bias, and no more scatter than n independent draws would have."""
    capacity, n = 1 << 13, 1 << 12  # a sample is at least half full
    errors = np.array([error_of_the_median(kind, 400, seed, capacity) for seed in range(40)])
    # |x| = g |z|, g log-uniform over a decade: the density of ln |x| at its median is 0.35, so the
    # deviation of a sample median is 1 / (2 * 0.35 * sqrt(n)) of it.
    deviation = 1 / (2 * 0.35 * n**0.5)
    assert errors.std() < 1.25 * deviation
    assert abs(errors.mean()) < 3 * deviation / 40**0.5


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize(("channels", "n_batches"), [(48, 2), (64, 1), (64, 5)])
def test_places_do_not_fall_in_step_with_channels(kind, channels, n_batches):
    """The stride that an unjittered sample would have here is the number of channels, or a
    multiple."""
    toy = Toy(Echo(channels, kind))
    per_channel = torch.arange(channels, dtype=torch.float32)
    frames, capacity = 2048, 4096
    if kind == "linear":
        x = per_channel.expand(2, frames, channels)
    else:
        x = per_channel[:, None].expand(2, channels, frames)
    batches = [Batch({"x": x.contiguous()})] * n_batches
    seen = {}
    spy = Measure(lambda observed: float(len(seen.setdefault("y", observed.sample))), "Of a test.")
    with registered(MEASURES, "spy", spy):
        kept = sense(toy, batches, "spy", capacity=capacity)[0]
    assert capacity / 2 <= kept <= capacity
    counts = np.bincount(seen["y"].astype(int), minlength=channels)
    expected = kept / channels
    # Multinomial or more even than that: five standard deviations.
    assert np.abs(counts - expected).max() < 5 * expected**0.5


def test_padding_is_never_sampled():
    for kind in ("linear", "conv1d"):
        toy = Toy(Echo(8, kind))
        frames = torch.tensor([37, 500, 1])
        x = torch.full((3, 500, 8), 1e6)
        for i, n in enumerate(frames):
            x[i, :n] = 1.0
        x = x if kind == "linear" else x.transpose(1, 2).contiguous()
        batch = Batch({"x": x}, {"layer": frames}, {"layer": frames})
        assert sense(toy, [batch] * 3, "mean", capacity=64)[0] == 1.0
        assert sense(toy, [batch] * 3, "abs-max", capacity=64)[0] == 1.0


def test_each_batch_has_frames_of_its_own():
    """Batches come and go in one place of the memory; their padding differs, all else is equal."""
    toy = Toy(Echo(1))

    def stream():
        for i in range(9):
            frames = torch.tensor([[3, 9, 6], [6, 3, 9], [9, 6, 3]][i % 3])
            x = torch.where(torch.arange(9) < frames[:, None], 1.0, 1e6)[..., None]
            yield Batch({"x": x}, {"layer": frames}, {"layer": frames})

    assert sense(toy, stream(), "mean")[0] == 1.0


@pytest.mark.parametrize("measure", EXACT)
def test_where_speech_ends_before_the_frames_do_only_speech_counts(measure):
    toy = Toy(Echo(4))
    x = torch.randn(2, 9, 4)
    frames, speech = torch.tensor([9, 8]), torch.tensor([5, 2])
    batch = Batch({"x": x}, {"layer": frames}, {"layer": frames}, speech={"layer": speech})
    y = torch.cat([x[0, :5], x[1, :2]]).double().numpy()
    assert sense(toy, [batch], measure)[0] == pytest.approx(EXACT[measure](y))


@pytest.mark.parametrize("measure", ["max", "abs-max"])
def test_extremes_are_exact_however_small_the_sample(measure):
    toy = Toy(Echo(4))
    batches = [Batch({"x": torch.randn(2, 500, 4)}) for _ in range(3)]
    batches[1].inputs["x"][1, 123, 2] = -77.0
    batches[2].inputs["x"][0, 7, 3] = 55.5
    assert sense(toy, batches, measure, capacity=16)[0] == {"max": 55.5, "abs-max": 77.0}[measure]


def test_one_forward_pass_and_no_batch_is_kept():
    toy = Toy(Talker())
    alive: list[weakref.ref] = []

    def stream():
        for seed in range(6):
            batch = talk(clips(LENGTHS, seed))
            gc.collect()
            assert sum(r() is not None for r in alive) <= 1  # at most the one just used
            alive.append(weakref.ref(batch.inputs["x"]))
            yield batch

    sense(toy, stream())
    assert toy.forwards == 6
    assert n_hooks(toy.module) == 0
    assert all(p.grad is None for p in toy.module.parameters())


def test_hooks_are_gone_after_an_error():
    toy = Toy(Talker())

    def stream():
        yield talk(clips(LENGTHS))
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError):
        sense(toy, stream())
    assert n_hooks(toy.module) == 0


def test_a_layer_that_is_never_reached_is_named():
    toy = Toy(Talker())
    toy.module.spare = nn.Linear(3, 3)
    toy = Toy(toy.module)
    with pytest.raises(FedsimError, match=r"'spare'.*add the layer to model\.keep"):
        sense(toy, [talk(clips(LENGTHS))])
    with pytest.raises(FedsimError, match=r"'conv1'.*at least one clip"):
        sense(toy, [])


@pytest.mark.parametrize("measure", EXACT)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_is_an_error(measure, bad):
    """One bad clip among good ones must not hide: a median of the rest would look sound."""
    toy = Toy(Talker())
    spoilt = [*clips([64, 64, 64]), torch.full((64,), bad)]
    alone = replace(talk(spoilt), alone=True)
    for batches in ([talk(spoilt)], [talk([c]) for c in spoilt], [alone]):
        with pytest.raises(FedsimError, match=r"'conv1' outputs .*check the clips' level"):
            sense(toy, batches, measure)


@pytest.mark.parametrize("measure", ["max", "abs-max"])
def test_a_nan_that_the_sample_misses(measure):
    toy = Toy(Echo(4))
    batches = [Batch({"x": torch.randn(2, 500, 4)}) for _ in range(3)]
    batches[1].inputs["x"][1, 123, 2] = float("nan")
    with pytest.raises(FedsimError, match=r"'layer' outputs nan .*check the clips' level"):
        sense(toy, batches, measure, capacity=16)


def test_unknown_measure_comes_with_the_nearest():
    with pytest.raises(FedsimError, match="did you mean 'median'"):
        sense(Toy(Talker()), [talk(clips(LENGTHS))], "medain")


@thorough
@given(st.integers(1, 4001), st.integers(0, 99))
def test_quantiles_are_numpys(n, seed):
    values = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    expected = np.quantile(values.astype(np.float64), QUANTILES)
    np.testing.assert_allclose(quantiles_of(values), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("measure", ["median", "abs-max", "normality", "kl"])
@pytest.mark.parametrize("alone", [True, False])
def test_quantiles_in_the_pass_that_senses(measure, alone):
    """Both are what each alone would be: quantiles of signed outputs, values of what they need."""
    toy, batch = Toy(Talker()), replace(talk(clips(LENGTHS)), alone=alone)
    found = Sensing(measure, quantiles=True).run(toy, [batch])
    values, distribution = found.values, found.quantiles
    assert toy.forwards == 1
    np.testing.assert_array_equal(values, sense(toy, [batch], measure))
    np.testing.assert_array_equal(distribution, quantiles(toy, [batch]))
    assert distribution.shape == (len(toy.layers), len(QUANTILES))
    assert (distribution[:, 0] < 0).all()
    if measure == "abs-max":
        np.testing.assert_allclose(values, np.abs(distribution[:, [0, -1]]).max(axis=1))
