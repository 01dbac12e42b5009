"""What a device reports about its layers: a vector or a table, whole and finite."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quant_toys import thorough

from fedsim.errors import FedsimError
from fedsim.quant.profile import LayerProfile, profile_of

DEPTHS = st.sampled_from([(), (4,), (2, 3, 4, 8)])


def test_a_vector():
    profile = profile_of([3, 1, 2], "median")
    assert (profile.layers, profile.is_table, profile.measure) == (3, False, "median")
    assert profile.values.dtype == np.float64
    assert profile.flat.tolist() == [3, 1, 2]
    assert profile.at((4, 8)) is profile  # the same at every depth


def test_a_table():
    profile = profile_of([1, 2, 3, 4, 5, 6], "loss", depths=(2, 4, 8))
    assert (profile.layers, profile.is_table) == (2, True)
    assert profile.values.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert profile.flat.tolist() == [1, 2, 3, 4, 5, 6]
    assert profile.at((2, 4, 8)) is profile
    some = profile.at([2, 8])
    assert (some.depths, some.measure) == ((2, 8), "loss")
    assert some.values.tolist() == [[1, 3], [4, 6]]
    assert some.at((8,)).values.tolist() == [[3], [6]]


@thorough
@given(DEPTHS, st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_flat_values_come_back(depths, layers, seed):
    rng = np.random.default_rng(seed)
    flat, other = rng.normal(size=(2, layers * max(1, len(depths))))
    profile = profile_of(flat, "m", depths)
    assert profile.layers == layers
    np.testing.assert_array_equal(profile.flat, flat)
    changed = profile.with_values(other)
    np.testing.assert_array_equal(changed.flat, other)
    assert changed.values.shape == profile.values.shape
    assert (changed.measure, changed.depths) == (profile.measure, profile.depths)
    again = profile_of(profile.flat, profile.measure, profile.depths)
    np.testing.assert_array_equal(again.values, profile.values)
    for i, depth in enumerate(depths):
        np.testing.assert_array_equal(profile.at((depth,)).values[:, 0], profile.values[:, i])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_names_its_layer(bad):
    with pytest.raises(FedsimError, match=rf"'median': the value of layer 1 is {bad}; .*finite"):
        profile_of([1.0, bad, 2.0], "median")
    with pytest.raises(FedsimError, match=rf"layer 1 is {bad}; .*finite"):
        profile_of([1.0, 2.0, 3.0, bad], "loss", (4, 8))
    with pytest.raises(FedsimError, match=rf"layer 0 is {bad}; .*finite"):
        profile_of([1.0, 2.0], "median").with_values([bad, 0.0])


def test_values_of_another_shape():
    for values, depths in (
        (np.zeros((2, 3)), ()),
        (np.zeros(()), ()),
        (np.zeros(6), (4, 8)),
        (np.zeros((2, 3)), (4, 8)),
        (np.zeros((2, 2, 2)), (4, 8)),
    ):
        with pytest.raises(FedsimError, match=rf"'m': shape .* fit {len(depths)} .*give one value"):
            LayerProfile(values, "m", depths)
    with pytest.raises(FedsimError, match=r"3 values do not fill rows of 2 .*one value per layer"):
        profile_of([1, 2, 3], "m", (4, 8))


def test_a_depth_that_the_table_does_not_have():
    table = profile_of([1, 2, 3, 4], "loss", (4, 8))
    with pytest.raises(FedsimError, match="column for 5 bits, only for 4, 8; measure at"):
        table.at((4, 5, 8))


def test_pairs_follow_the_columns_of_the_table():
    pairs = np.arange(36.0).reshape(6, 6)
    profile = LayerProfile(np.array([[1.0, 2, 3], [4, 5, 6]]), "loss", (2, 4, 8), pairs)
    some = profile.at((2, 8))
    # Entries 0 and 2 of layer 0, 3 and 5 of layer 1.
    assert some.values.tolist() == [[1, 3], [4, 6]]
    assert some.pairs.tolist() == [[pairs[i, j] for j in (0, 2, 3, 5)] for i in (0, 2, 3, 5)]
    form = some.form()
    assert np.diag(form).tolist() == [1, 3, 4, 6]  # the table, not the pairs
    assert form[0, 3] == pairs[0, 5]
    assert some.pairs[0, 0] == 0  # untouched
    assert profile.with_values(np.ones(6)).pairs is None


def test_pairs_that_do_not_fit():
    table, vector = np.ones((2, 2)), np.ones(2)
    for values, depths, shape in (
        (table, (4, 8), (2, 2)),
        (table, (4, 8), (4, 3)),
        (table, (4, 8), (4,)),
        (vector, (), (2, 2)),
    ):
        with pytest.raises(
            FedsimError, match=r"'m': pairs of shape .* a row and a column for each"
        ):
            LayerProfile(values, "m", depths, np.zeros(shape))
    pairs = np.zeros((4, 4))
    pairs[1, 2] = np.nan
    with pytest.raises(FedsimError, match="the pair of layers 0 and 1 is not finite; give finite"):
        LayerProfile(table, "m", (4, 8), pairs)
    with pytest.raises(FedsimError, match="'m' has no pairs; measure them with the table"):
        LayerProfile(table, "m", (4, 8)).form()
