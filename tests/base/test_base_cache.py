from __future__ import annotations

import math
import weakref
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples

from fedsim.base.cache import LRUCache

BYTES = 120


@settings(max_examples=examples(150), deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.integers(0, 7), max_size=40),
    st.sampled_from([0, 100, 120, 121, 240, 600, 10_000]),
    st.sampled_from([1, 3, math.inf]),
)
def test_it_holds_what_was_used_last_and_never_more_than_its_limits_or_one(
    keys, max_bytes, max_values
):
    """Against a list that is searched and cut from its end."""
    cache: LRUCache[np.ndarray] = LRUCache(max_bytes, max_values)
    model: OrderedDict[int, None] = OrderedDict()
    alive: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
    for key in keys:
        made = []

        def make(key=key, made=made):
            made.append(key)
            return np.full(BYTES // 8, float(key))

        value = cache.get(key, make)
        assert value[0] == key
        assert bool(made) == (key not in model)
        alive[key] = value
        del value
        model[key] = None
        model.move_to_end(key)
        while len(model) > 1 and (len(model) * BYTES > max_bytes or len(model) > max_values):
            model.popitem(last=False)
        assert set(alive) == set(model)


def test_what_cannot_be_made_is_not_kept():
    cache: LRUCache[np.ndarray] = LRUCache(1000)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: np.zeros(1 // 0))
    assert cache.get("a", lambda: np.ones(3)).tolist() == [1, 1, 1]


def test_values_without_bytes_are_bounded_by_their_number_alone():
    cache: LRUCache[str] = LRUCache(0, 2)
    for key in "abc":
        assert cache.get(key, lambda key=key: key) == key
    assert cache.get("b", lambda: "new") == "b"
    assert cache.get("c", lambda: "new") == "c"
    assert cache.get("a", lambda: "new") == "new"
