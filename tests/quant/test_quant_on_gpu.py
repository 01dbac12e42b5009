"""What runs on a GPU, in torch, against what numpy computes for the processor.

On tensors of the processor, so that the numbers are checked without a GPU; that nothing is on the
wrong device, or waits for the GPU, is in `speech/test_speech_fake_gpu.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rounding_toys import every_format, inputs, moments_of, output_error, weights

from fedsim.errors import FedsimError
from fedsim.quant import accelerated
from fedsim.quant.distances import BITS
from fedsim.quant.granularities import WeightFormat
from fedsim.quant.measures import MEASURES, Observed
from fedsim.quant.packing import unpack
from fedsim.quant.quantiles import between, quantiles_of
from fedsim.quant.rounding import ROUNDINGS, on_gpu, on_gpu_search
from fedsim.quant.rounding.independent import round_weight
from fedsim.quant.rounding.scales import half_up
from fedsim.quant.rounding.task import RoundingTask
from fedsim.quant.sample import Sample, fetched, masked_extremes
from fedsim.quant.weights import PackedWeight


def codes_of(packed: PackedWeight) -> np.ndarray:
    return unpack(packed.payload, packed.bits, int(np.prod(packed.shape))).astype(np.int64)


def task(shape: tuple[int, ...], bits: int, seed: int = 0, groups: int = 1) -> RoundingTask:
    k = int(np.prod(shape[1:]))
    moments = moments_of(*(inputs(4 * k, k, seed + g) for g in range(groups)))
    return RoundingTask(weights(*shape, seed=seed), bits, moments)


TASKS = [task((24, 96), 3), task((24, 96), 5, seed=1), task((40, 160), 2, seed=2)]
GROUPED = task((12, 8, 5), 4, seed=3, groups=4)


@pytest.mark.parametrize("weight_format", every_format(), ids=str)
@pytest.mark.parametrize("name", ["nearest", "scaled", "compensated"])
def test_codes_are_those_of_the_processor(name, weight_format):
    """All of them by `nearest`; a sum in another order may tip a tie of the other two."""
    entry, tasks = ROUNDINGS[name], [*TASKS, GROUPED, RoundingTask(weights(8, 64), 9)]
    there = entry.on_gpu(tasks, weight_format)
    for one, here, found in zip(tasks, entry.round(tasks, weight_format), there, strict=True):
        assert (found.shape, found.bits, found.format) == (here.shape, here.bits, here.format)
        differing = np.mean(codes_of(here) != codes_of(found))
        if name == "nearest":
            assert differing == 0
            np.testing.assert_array_equal(found.scales, here.scales)
        else:
            assert differing < 0.01
        if one.moments is not None:
            errors = output_error(one, here), output_error(one, found)
            assert errors[1] == pytest.approx(errors[0], rel=2e-3)


def test_rows_worked_on_together_change_nothing():
    for one in (TASKS[0], GROUPED):
        for weight_format in (WeightFormat("per_channel"), WeightFormat("group_32", True)):
            (whole,) = on_gpu_search.round_together([one], weight_format)
            (split,) = on_gpu_search.round_together([one], weight_format, rows=2)
            assert all(torch.equal(a, b) for a, b in zip(whole, split, strict=True))


@pytest.mark.parametrize("weight_format", every_format(), ids=str)
def test_a_rounded_weight_is_that_of_the_processor(weight_format):
    weight = weights(16, 7, 9)
    there = on_gpu.round_weight(weight, BITS, weight_format)
    assert torch.equal(there, round_weight(weight, BITS, weight_format))


@pytest.mark.parametrize("name", ["nearest", "scaled", "compensated"])
def test_a_weight_that_cannot_be_rounded(name):
    broken, large = torch.ones(4, 8), torch.full((4, 8), 1e6)
    broken[1, 2] = torch.nan
    moments = moments_of(inputs(64, 8))
    for zero_points in (False, True):
        how = WeightFormat("per_channel", zero_points)
        with pytest.raises(FedsimError, match="a weight is NaN or infinite"):
            ROUNDINGS[name].on_gpu([RoundingTask(broken, 4, moments)], how)
        with pytest.raises(FedsimError, match="needs a scale of"):
            ROUNDINGS[name].on_gpu([RoundingTask(large, 2, moments)], how)
    indefinite = -np.eye(8, dtype=np.float32)[None]
    indefinite[0, 0, 0] = 9.0
    if name == "compensated":
        with pytest.raises(FedsimError, match="not positive semidefinite"):
            ROUNDINGS[name].on_gpu([RoundingTask(torch.ones(4, 8), 4, indefinite)], how)


def test_next_half():
    """Against numpy: halves, their neighbours in float64, numbers below the smallest, and zero."""
    halves = np.arange(1, 0x7C00, 37, dtype=np.uint16).view(np.float16).astype(np.float64)
    values = np.concatenate([[0.0, 1e-12], halves, np.nextafter(halves, 0)])
    values = np.concatenate([values, np.nextafter(halves[:-1], np.inf), halves[:-1] * (1 + 1e-9)])
    np.testing.assert_array_equal(on_gpu.next_half(torch.from_numpy(values)), half_up(values))
    beyond = on_gpu.next_half(torch.tensor([65504.1, torch.nan], dtype=torch.float64))
    assert beyond[0] == torch.inf
    assert beyond[1].isnan()


SAMPLES = {
    "even": np.random.default_rng(1).standard_normal(1000),
    "odd": np.random.default_rng(2).standard_normal(777) * 30 + 4,
    "constant": np.full(50, 2.5),
    "one": np.array([-3.0]),
}


@pytest.mark.parametrize("name", ["median", "mean", "max", "abs-max", "std", "var", "normality"])
@pytest.mark.parametrize("sample", SAMPLES)
def test_measures_of_a_sample(name, sample):
    measure = MEASURES[name]
    values = SAMPLES[sample].astype(np.float32)
    values = np.abs(values) if measure.of_magnitudes else values
    low, high = float(values.min()), float(values.max())
    expected = measure.value(Observed(values.copy(), low, high))
    ends = torch.tensor(low), torch.tensor(high)
    found = measure.on_gpu(Observed(torch.from_numpy(values), *ends))
    assert found.ndim == 0
    assert float(found) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", ["l1", "l2", "frobenius", "spectral", "kl"])
@pytest.mark.parametrize("features", [6, 40])
def test_measures_of_a_change(name, features):
    """Of what the processor accumulated, read in both ways."""
    torch.manual_seed(3)
    module = torch.nn.Linear(12, features)
    measure = MEASURES[name]
    assert measure.change is not None
    with torch.inference_mode():
        change = measure.change("linear", module, 10_000)
        for frames in (5, 9):
            x = torch.randn(2, frames, 12)
            change.see((x,), {}, module(x), torch.tensor([frames, 3]))
        expected = measure.value(Observed(np.empty(0, np.float32), 0.0, 0.0, change))
        as_on_gpu(change)
        found = measure.on_gpu(Observed(torch.empty(0), 0.0, 0.0, change))
    assert float(found) == pytest.approx(expected, rel=1e-6)


def as_on_gpu(change) -> None:
    """Turn the numbers and arrays of an accumulator into the tensors that it has on a GPU."""
    for name, value in list(vars(change).items()):
        if isinstance(value, float):
            setattr(change, name, torch.tensor(value, dtype=torch.float64))
        if isinstance(value, Sample):
            sample = Sample(10_000)
            sample.room_for(len(value.values))
            sample.add(torch.from_numpy(value.values))
            setattr(change, name, sample)
    if hasattr(change, "extremes"):
        ends = change.extremes
        ends.low, ends.high = torch.tensor(float(ends.low)), torch.tensor(float(ends.high))


def test_a_sample_of_tensors_keeps_what_one_of_arrays_keeps():
    rng = np.random.default_rng(5)
    arrays, tensors = Sample(64, (3,)), Sample(64, (3,))
    for n in (10, 50, 300, 7, 900, 33):
        keep = arrays.room_for(n)
        assert tensors.room_for(n) == keep
        rows = rng.standard_normal((keep, 3)).astype(np.float32)
        arrays.add(rows)
        tensors.add(torch.from_numpy(rows))
    np.testing.assert_array_equal(tensors.values, arrays.values)
    assert isinstance(tensors.values, torch.Tensor)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("counts", [None, [4, 4], [4, 1], [0, 3]])
def test_extremes(axis, counts):
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(axis))
    x = x if axis == 1 else x.transpose(1, 2)
    assert tuple(accelerated.extremes(x, counts, axis).tolist()) == masked_extremes(x, counts, axis)
    x.select(axis, 0)[1] = torch.nan
    expected = masked_extremes(x, counts, axis)
    np.testing.assert_array_equal(accelerated.extremes(x, counts, axis), expected)
    wider = accelerated.wider(torch.tensor([-9.0, 9.0]), accelerated.extremes(x, counts, axis))
    assert bool(wider.isnan().all()) == bool(np.isnan(expected).any())


def test_quantiles():
    values = np.random.default_rng(8).standard_normal(1234).astype(np.float32)
    low, high = accelerated.around_quantiles(torch.from_numpy(values)).numpy()
    np.testing.assert_array_equal(between(1234, low, high), quantiles_of(values))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_one_bad_clip_among_good_ones_is_seen(broken):
    sample = torch.tensor([1.0, 2.0, broken, 3.0])
    found = accelerated.unless_broken(sample, torch.tensor(2.0, dtype=torch.float64))
    np.testing.assert_equal(float(found), broken)
    assert float(accelerated.unless_broken(sample[:2], torch.tensor(1.5))) == 1.5


def test_numbers_and_tensors_are_fetched_in_order():
    values = [1.5, torch.tensor(2.0), np.float32(3.0), torch.tensor(4.0, dtype=torch.float64)]
    assert fetched(values) == [1.5, 2.0, 3.0, 4.0]
    assert fetched([]) == []
