"""Sensing, observing and second moments in one pass: the same as in one for each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quant_toys import Talker, Toy, clips, n_hooks, talk

from fedsim.errors import FedsimError
from fedsim.quant.calibrators import needs
from fedsim.quant.moments import second_moments
from fedsim.quant.observe import observe
from fedsim.quant.onepass import NOTHING, forward_only, one_pass
from fedsim.quant.sensitivity import sense, sense_and_quantiles

LENGTHS = [61, 90, 47, 33, 80]
BATCHES = [talk(clips(LENGTHS[:3])), talk(clips(LENGTHS[3:], seed=1))]


def sensing(measure: str):
    return lambda model, batches: sense(model, batches, measure)


@pytest.mark.parametrize("measure", ["median", "abs-max", "spectral"])
@pytest.mark.parametrize("calibrations", [["minmax"], ["cosine", "none"], ["minmax", "cosine"]])
@pytest.mark.parametrize("moments", [False, True])
def test_one_pass_gives_what_several_give(measure, calibrations, moments):
    toy = Toy(Talker())
    passed = one_pass(toy, iter(BATCHES), sensing(measure), needs(calibrations), moments=moments)
    values, seen = passed.found, passed.observed
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
    if not moments:
        assert passed.moments is None
        return
    alone = second_moments(toy, BATCHES)
    assert passed.moments.keys() == alone.keys()
    for name, one in alone.items():
        assert passed.moments[name].rows == one.rows
        np.testing.assert_array_equal(passed.moments[name].mean, one.mean)


@pytest.mark.parametrize(
    "calibrations", [[], ["dynamic", "float"], ["hessian"], ["cosine", "hessian"]]
)
def test_without_observations_where_they_need_no_pass_or_one_of_their_own(calibrations):
    toy = Toy(Talker())
    passed = one_pass(toy, BATCHES, sensing("median"), needs(calibrations))
    assert passed.observed is None
    assert passed.moments is None
    assert toy.forwards == len(BATCHES)
    np.testing.assert_array_equal(passed.found, sense(toy, BATCHES))


def test_a_pass_in_which_nothing_is_sensed():
    toy = Toy(Talker())
    passed = one_pass(toy, BATCHES, forward_only, moments=True)
    assert (passed.found, passed.observed) == (None, None)
    assert toy.forwards == len(BATCHES)
    assert passed.moments.keys() == {"conv1", "conv2", "mid", "head"}
    assert n_hooks(toy.module) == 0
    assert one_pass(toy, BATCHES, forward_only, NOTHING).moments is None


def test_whatever_sensing_returns_comes_back():
    toy = Toy(Talker())

    def both(model, batches):
        return sense_and_quantiles(model, batches, "mean")

    passed = one_pass(toy, BATCHES, both, needs(["minmax"]))
    values, distribution = passed.found
    expected = sense_and_quantiles(toy, BATCHES, "mean")
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(distribution, expected[1])
    assert passed.observed.keys() == {"conv1", "conv2", "mid", "head"}


def test_a_pass_without_clips_and_one_that_fails_leave_no_hooks():
    toy = Toy(Talker())
    with pytest.raises(FedsimError, match="at least one clip"):
        one_pass(toy, [], sensing("median"), needs(["cosine"]), moments=True)
    assert n_hooks(toy.module) == 0

    def fails(model, batches):
        next(batches)
        raise MemoryError

    with pytest.raises(MemoryError):
        one_pass(toy, BATCHES, fails, needs(["cosine"]), moments=True)
    assert n_hooks(toy.module) == 0
