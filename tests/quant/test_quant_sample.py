from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quant_toys import thorough

from fedsim.quant.sample import Sample, masked_extremes, spread


def feed(capacity: int, counts) -> np.ndarray:
    """Offer the rows 0, 1, 2, ... in batches of `counts`; return what a sample keeps."""
    sample = Sample(capacity)
    start = 0
    for n in counts:
        keep = sample.room_for(n)
        sample.add(start + spread(n, keep).astype(np.float32))
        start += n
        assert len(sample.values) <= capacity
    return sample.values


@thorough
@given(st.integers(0, 5000), st.integers(0, 300))
def test_spread_takes_one_place_of_each_stretch(n, keep):
    places = spread(n, keep)
    assert places.dtype == np.int64
    np.testing.assert_array_equal(places, spread(n, keep))
    if keep >= n:
        np.testing.assert_array_equal(places, np.arange(n))
        return
    assert len(places) == keep
    for i, place in enumerate(places):
        assert int(i * n / keep) <= place < (i + 1) * n / keep
    assert (np.diff(places) >= 0).all()


def test_spread_jitters_over_the_whole_stretch():
    # 64 places a stretch: every remainder appears about equally often.
    inside = spread(64 * 6400, 6400) % 64
    assert np.bincount(inside, minlength=64).min() > 50
    assert np.bincount(inside, minlength=64).max() < 160


@thorough
@given(st.integers(1, 50), st.lists(st.integers(0, 200), max_size=30))
def test_never_more_than_the_capacity_and_all_below_it(capacity, counts):
    kept = feed(capacity, counts)
    total = sum(counts)
    assert len(kept) <= capacity
    assert (np.diff(kept) >= 0).all()
    assert set(kept.tolist()) <= set(range(total))
    if total <= capacity:
        np.testing.assert_array_equal(kept, np.arange(total))
    elif capacity >= 8:
        assert len(kept) >= capacity // 4


def test_the_memory_never_outgrows_the_capacity():
    sample = Sample(100, (3, 2))
    for _ in range(50):
        keep = sample.room_for(977)
        sample.add(np.zeros((keep, 3, 2), np.float32))
        assert sample.values.nbytes <= 100 * 6 * 4
    assert sample.values.shape[1:] == (3, 2)


@thorough
@given(st.lists(st.integers(0, 99), min_size=1, max_size=40))
def test_two_samples_of_equal_counts_stay_side_by_side(counts):
    np.testing.assert_array_equal(feed(16, counts), feed(16, counts))


@pytest.mark.parametrize("batch", [1, 3, 8, 100, 1000, 50_000])
def test_an_even_share_of_the_whole_stream(batch):
    """However small the batches: late rows weigh no more than early ones."""
    total = 50_000
    kept = feed(512, [batch] * (total // batch))
    assert len(kept) >= 200
    shares = np.histogram(kept, bins=8, range=(0, total))[0] / len(kept)
    assert shares.min() > 0.09
    assert shares.max() < 0.16


def test_a_row_of_a_small_batch_weighs_no_more_than_one_of_a_large():
    counts = [2, 998] * 100
    small = [i for b in range(100) for i in (1000 * b, 1000 * b + 1)]
    kept = feed(1024, counts)
    assert np.isin(kept, small).sum() <= 8  # 0.2 % of some 700: one or two


def test_thinning_keeps_each_of_two_neighbours_equally_often():
    kept = feed(20_000, [20_000, 1])
    parity = kept[kept < 20_000] % 2
    assert abs(parity.mean() - 0.5) < 0.02


def test_masked_extremes():
    x = torch.tensor(
        [[[1.0, -2.0], [3.0, 4.0], [99.0, -99.0]], [[0.5, 0.0], [-99.0, 99.0], [99.0, 99.0]]]
    )
    assert masked_extremes(x, [2, 1], 1) == (-2.0, 4.0)
    assert masked_extremes(x, [2, 0], 1) == (-2.0, 4.0)
    assert masked_extremes(x.transpose(1, 2), [2, 1], 2) == (-2.0, 4.0)
    assert masked_extremes(x, [1, 3], 1) == (-99.0, 99.0)
    assert masked_extremes(x[1:], [1], 1) == (0.0, 0.5)
    assert masked_extremes(x.flip(0), [1, 3], 1) == (-99.0, 99.0)
    assert masked_extremes(x[:, :2], [2, 1], 1) == (-2.0, 4.0)  # one clip is whole
    assert masked_extremes(x, [3, 3], 1) == (-99.0, 99.0)
    assert masked_extremes(x, None, 1) == (-99.0, 99.0)


@pytest.mark.parametrize("clip", [0, 1, 2])
def test_masked_extremes_of_nan(clip):
    x = torch.ones(3, 4, 2)
    x[clip, 0, 1] = float("nan")
    for counts in ([2, 1, 4], [4, 4, 4], None):
        assert np.isnan(masked_extremes(x, counts, 1)).all()


def test_masked_extremes_look_past_nan_in_the_padding():
    x = torch.ones(2, 4, 2)
    x[:, 3] = float("nan")
    assert masked_extremes(x, [3, 1], 1) == (1.0, 1.0)
