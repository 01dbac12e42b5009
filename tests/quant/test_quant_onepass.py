"""Sensing and observing in one pass: the same as in two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quant_toys import Talker, Toy, clips, n_hooks, talk

from fedsim.errors import FedsimError
from fedsim.quant.calibrators import needs, on_user_data
from fedsim.quant.moments import second_moments
from fedsim.quant.observe import observe
from fedsim.quant.onepass import forward_only, one_pass
from fedsim.quant.sensitivity import Sensing, sense

LENGTHS = [61, 90, 47, 33, 80]
BATCHES = [talk(clips(LENGTHS[:3])), talk(clips(LENGTHS[3:], seed=1))]


def sensing(measure: str):
    return lambda model, batches: sense(model, batches, measure)


@pytest.mark.parametrize("measure", ["median", "abs-max", "spectral"])
@pytest.mark.parametrize("calibrations", [["minmax"], ["cosine", "none"], ["minmax", "cosine"]])
def test_one_pass_gives_what_two_give(measure, calibrations):
    toy = Toy(Talker())
    passed = one_pass(toy, iter(BATCHES), sensing(measure), needs(on_user_data(calibrations)))
    values, seen = passed.found, passed.observed
    assert passed.moments is None
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


@pytest.mark.parametrize(
    "calibrations", [[], ["none"], ["dynamic", "float"], ["hessian"], ["cosine", "hessian"]]
)
def test_without_observations_where_they_need_no_pass_or_one_of_their_own(calibrations):
    toy = Toy(Talker())
    passed = one_pass(toy, BATCHES, sensing("median"), needs(on_user_data(calibrations)))
    values = passed.found
    assert passed.observed is None
    assert toy.forwards == len(BATCHES)
    np.testing.assert_array_equal(values, sense(toy, BATCHES))


def test_whatever_sensing_returns_comes_back():
    toy = Toy(Talker())
    both = Sensing("mean", quantiles=True)
    passed = one_pass(toy, BATCHES, both.run, needs(["minmax"]))
    found, seen, expected = passed.found, passed.observed, both.run(toy, BATCHES)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.quantiles, expected.quantiles)
    assert seen.keys() == {"conv1", "conv2", "mid", "head"}


@pytest.mark.parametrize("calibrations", [[], ["cosine"], ["hessian"]])
def test_second_moments_come_from_the_same_pass(calibrations):
    toy = Toy(Talker())
    passed = one_pass(toy, BATCHES, sensing("median"), needs(calibrations), moments=True)
    assert toy.forwards == len(BATCHES)
    assert n_hooks(toy.module) == 0
    np.testing.assert_array_equal(passed.found, sense(toy, BATCHES))
    assert (passed.observed is None) == (calibrations != ["cosine"])
    expected = second_moments(toy, BATCHES)
    assert passed.moments.keys() == expected.keys() == {"conv1", "conv2", "mid", "head"}
    for name, one in expected.items():
        assert passed.moments[name].rows == one.rows
        np.testing.assert_array_equal(passed.moments[name].mean, one.mean)


def test_a_pass_in_which_nothing_is_sensed():
    toy = Toy(Talker())
    passed = one_pass(toy, iter(BATCHES), forward_only, needs(["minmax"]))
    assert toy.forwards == len(BATCHES)
    assert passed.found is None
    for name, one in observe(toy, BATCHES, rows=False).items():
        assert (passed.observed[name].low, passed.observed[name].high) == (one.low, one.high)


def test_a_pass_without_clips_and_one_that_fails_leave_no_hooks():
    toy = Toy(Talker())
    with pytest.raises(FedsimError, match="at least one clip"):
        one_pass(toy, [], sensing("median"), needs(["cosine"]))

    def fails(model, batches):
        next(batches)
        raise MemoryError

    with pytest.raises(MemoryError):
        one_pass(toy, BATCHES, fails, needs(["cosine"]), moments=True)
    assert n_hooks(toy.module) == 0
