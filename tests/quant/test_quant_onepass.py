"""Sensing and observing in one pass: the same as in two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quant_toys import Talker, Toy, clips, n_hooks, talk

from fedsim.errors import FedsimError
from fedsim.quant.observe import observe
from fedsim.quant.onepass import sense_and_observe
from fedsim.quant.sensitivity import sense, sense_and_quantiles

LENGTHS = [61, 90, 47, 33, 80]
BATCHES = [talk(clips(LENGTHS[:3])), talk(clips(LENGTHS[3:], seed=1))]


def sensing(measure: str):
    return lambda model, batches: sense(model, batches, measure)


@pytest.mark.parametrize("measure", ["median", "abs-max", "spectral"])
@pytest.mark.parametrize("calibrations", [["minmax"], ["cosine", "none"], ["minmax", "cosine"]])
def test_one_pass_gives_what_two_give(measure, calibrations):
    toy = Toy(Talker())
    values, seen = sense_and_observe(toy, iter(BATCHES), sensing(measure), calibrations)
    assert toy.forwards == len(BATCHES)
    assert n_hooks(toy.module) == 0
    np.testing.assert_array_equal(values, sense(toy, BATCHES, measure))
    expected = observe(toy, BATCHES, rows="cosine" in calibrations)
    assert seen.keys() == expected.keys()
    for name, one in expected.items():
        assert (seen[name].low, seen[name].high) == (one.low, one.high)
        assert seen[name].fisher is None
        if one.rows is None:
            assert seen[name].rows is None
        else:
            assert torch.equal(seen[name].rows, one.rows)


@pytest.mark.parametrize("calibrations", [[], ["none"], ["hessian"], ["cosine", "hessian"]])
def test_without_observations_where_they_need_no_pass_or_one_of_their_own(calibrations):
    toy = Toy(Talker())
    values, seen = sense_and_observe(toy, BATCHES, sensing("median"), calibrations)
    assert seen is None
    assert toy.forwards == len(BATCHES)
    np.testing.assert_array_equal(values, sense(toy, BATCHES))


def test_whatever_sensing_returns_comes_back():
    toy = Toy(Talker())

    def both(model, batches):
        return sense_and_quantiles(model, batches, "mean")

    (values, distribution), seen = sense_and_observe(toy, BATCHES, both, ["minmax"])
    expected = sense_and_quantiles(toy, BATCHES, "mean")
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(distribution, expected[1])
    assert seen.keys() == {"conv1", "conv2", "mid", "head"}


def test_a_pass_without_clips_and_one_that_fails_leave_no_hooks():
    toy = Toy(Talker())
    with pytest.raises(FedsimError, match="at least one clip"):
        sense_and_observe(toy, [], sensing("median"), ["cosine"])
    with pytest.raises(FedsimError, match="did you mean 'cosine'"):
        sense_and_observe(toy, BATCHES, sensing("median"), ["cosin"])

    def fails(model, batches):
        next(batches)
        raise MemoryError

    with pytest.raises(MemoryError):
        sense_and_observe(toy, BATCHES, fails, ["cosine"])
    assert n_hooks(toy.module) == 0
