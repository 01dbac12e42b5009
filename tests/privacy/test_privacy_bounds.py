"""Bounds from public speakers, clipping, and the unit cube."""

import numpy as np
import pytest

from fedsim.errors import FedsimError
from fedsim.privacy.bounds import Bounds, clip, denormalize, normalize, public_bounds

BOUNDS = Bounds(np.array([1.0, 0.01]), np.array([16.0, 1.0]))


def test_bounds_by_hand():
    # Powers of two: the logarithm of layer 0 goes 0, 1, 2, 3, 4 and that of layer 1 as far down.
    values = np.stack([2.0 ** np.arange(5), 8.0 * 2.0 ** -np.arange(5)], axis=1)
    whole = public_bounds(values, quantiles=(0, 1), margin=0)
    np.testing.assert_allclose([whole.low, whole.high], [[1, 0.5], [16, 8]])
    inner = public_bounds(values, quantiles=(0.25, 0.75), margin=0.5)  # 1..3, one more each side
    np.testing.assert_allclose([inner.low, inner.high], [[1, 0.5], [16, 8]])


def test_bounds_hold_what_the_margin_is_meant_to():
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal([0.0, -9.0], [0.1, 2.0], (20_000, 2)))
    bounds = public_bounds(values)
    inside = np.mean((values >= bounds.low) & (values <= bounds.high), axis=0)
    np.testing.assert_allclose(inside, 0.986, atol=0.004)


def test_a_layers_scale_is_its_bounds_scale():
    values = np.exp(np.random.default_rng(1).normal(size=(12, 3)))
    scales = np.array([1e-6, 1.0, 1e6])
    one, scaled = public_bounds(values), public_bounds(values * scales)
    np.testing.assert_allclose(scaled.low, one.low * scales)
    np.testing.assert_allclose(scaled.high, one.high * scales)


def test_one_outlier_does_not_widen_the_bounds():
    values = np.exp(np.random.default_rng(2).normal(size=(40, 1)))
    spread = values.copy()
    spread[values.argmax()] = 1e9
    assert public_bounds(spread).high == pytest.approx(public_bounds(values).high)


def test_a_layer_on_which_all_speakers_agree_keeps_a_range():
    bounds = public_bounds(np.full((5, 2), [0.3, 40.0]))
    np.testing.assert_allclose(bounds.high / bounds.low, 1.01)
    np.testing.assert_allclose(bounds.middle, [0.3, 40.0])


def test_clip_and_normalize_by_hand():
    np.testing.assert_array_equal(clip(np.array([20.0, 0.1]), BOUNDS), [16.0, 0.1])
    np.testing.assert_array_equal(clip(np.array([0.0, -3.0]), BOUNDS), [1.0, 0.01])
    np.testing.assert_allclose(normalize(np.array([4.0, 0.1]), BOUNDS), [0.5, 0.5])
    np.testing.assert_array_equal(normalize(np.array([1.0, 1.0]), BOUNDS), [0, 1])
    np.testing.assert_array_equal(normalize(np.array([-5.0, 1e30]), BOUNDS), [0, 1])
    np.testing.assert_allclose(denormalize(np.array([0.25, 0.5]), BOUNDS), [2.0, 0.1])
    np.testing.assert_array_equal(denormalize(np.array([-7.0, 99.0]), BOUNDS), [1.0, 1.0])
    np.testing.assert_allclose(BOUNDS.middle, [4.0, 0.1])


def test_normalize_and_back():
    rng = np.random.default_rng(3)
    low = np.exp(rng.normal(0, 5, 300))
    bounds = Bounds(low, low * np.exp(rng.uniform(0.01, 3, 300)))
    values = low * (bounds.high / low) ** rng.uniform(size=300)
    places = normalize(values, bounds)
    assert ((places >= 0) & (places <= 1)).all()
    np.testing.assert_allclose(denormalize(places, bounds), values, rtol=1e-12)
    for end, value in ((0.0, bounds.low), (1.0, bounds.high)):
        back = denormalize(np.full(300, end), bounds)
        np.testing.assert_allclose(back, value, rtol=1e-12)
        assert ((back >= bounds.low) & (back <= bounds.high)).all()


def test_bounds_in_words():
    assert BOUNDS.sentence() == (
        "each of 2 layers is clipped to public bounds, the upper 16 to 100 times the lower"
    )


def test_bounds_that_are_none():
    for low, high, text in (
        ([1.0, 3.0], [2.0, 2.0], "bounds of layer 1 are 3 and 2"),
        ([1.0, 2.0], [2.0, 2.0], "bounds of layer 1 are 2 and 2"),
        ([0.0, 1.0], [2.0, 2.0], "bounds of layer 0 are 0 and 2"),
        ([1.0, 1.0], [2.0, np.inf], "layer 1 are 1 and inf"),
        ([1.0, np.nan], [2.0, 2.0], "layer 1 are nan and 2"),
        ([1.0], [2.0, 3.0], r"shapes \(1,\) and \(2,\)"),
        ([], [], r"shapes \(0,\)"),
    ):
        with pytest.raises(FedsimError, match=text):
            Bounds(np.array(low), np.array(high))


def test_public_speakers_that_give_no_bounds():
    for values, options, text in (
        ([[1.0, 2.0]], {}, "2 public speakers"),
        ([1.0, 2.0], {}, r"shape is \(2,\)"),
        ([[1.0, 2.0], [1.0, 0.0]], {}, "layer 1 of public speaker 1 has the sensitivity 0"),
        ([[1.0, np.nan], [1.0, 1.0]], {}, "layer 1 of public speaker 0 .* nan"),
        ([[1.0], [2.0]], {"quantiles": (0.9, 0.1)}, "two increasing numbers"),
        ([[1.0], [2.0]], {"margin": -0.1}, "margin of -0.1"),
    ):
        with pytest.raises(FedsimError, match=text):
            public_bounds(np.array(values), **options)


def test_values_that_fit_no_bounds():
    for use in (clip, normalize):
        with pytest.raises(FedsimError, match=r"3 values .* 2 layers; give one range per value"):
            use(np.ones(3), BOUNDS)
        for wrong in (np.nan, np.inf):
            with pytest.raises(FedsimError, match=f"layer 1 is {wrong}; it must be finite"):
                use(np.array([1.0, wrong]), BOUNDS)
