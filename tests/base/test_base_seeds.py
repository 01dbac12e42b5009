"""Random numbers: the same for the same client and purpose, and for no other."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from fedsim.base.seeds import client_rng


def test_the_same_everywhere():
    # A seed is part of a study's results: these numbers must never change.
    drawn = client_rng(7, "ann", "split").integers(0, 1000, 5)
    assert drawn.tolist() == [721, 677, 833, 915, 301]
    np.testing.assert_array_equal(client_rng(7, "ann", "split").integers(0, 1000, 5), drawn)


def test_seed_client_and_purpose_each_make_a_difference():
    streams = {
        tuple(client_rng(seed, client, purpose).integers(0, 2**62, 2))
        for seed, client, purpose in product((0, 1), ("a", "b", "ab"), ("x", "y", "bx"))
    }
    assert len(streams) == 18


def test_streams_are_not_correlated():
    draws = np.stack([client_rng(0, f"c{i}", "p").standard_normal(2000) for i in range(20)])
    others = np.corrcoef(draws) - np.eye(20)
    assert np.abs(others).max() < 0.12
    assert draws.mean() == pytest.approx(0, abs=0.02)
