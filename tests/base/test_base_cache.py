from __future__ import annotations

import math
import weakref
from collections import OrderedDict

import numpy as np
import pytest

from fedsim.base.cache import LRUCache

BYTES = 120


@pytest.mark.parametrize("most", [1, 3, math.inf])
@pytest.mark.parametrize("limit", [0, 100, 120, 121, 240, 600, 10_000])
def test_it_holds_what_was_used_last_and_never_more_than_its_limits_or_one(limit, most):
    """Against a list that is searched and cut from its end."""
    recent: LRUCache[np.ndarray] = LRUCache(limit, most)
    model: OrderedDict[int, None] = OrderedDict()
    alive: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
    for key in [*range(8), *range(7, -1, -1), *range(0, 8, 2), 0, 0, 3]:
        made = []

        def make(key=key, made=made):
            made.append(key)
            return np.full(BYTES // 8, float(key))

        value = recent.get(key, make)
        assert value[0] == key
        assert bool(made) == (key not in model)
        alive[key] = value
        del value
        model[key] = None
        model.move_to_end(key)
        while (len(model) * BYTES > limit or len(model) > most) and len(model) > 1:
            model.popitem(last=False)
        assert set(alive) == set(model)


def test_what_cannot_be_made_is_not_kept():
    recent: LRUCache[np.ndarray] = LRUCache(1000)
    with pytest.raises(ZeroDivisionError):
        recent.get("a", lambda: np.zeros(1 // 0))
    assert recent.get("a", lambda: np.ones(3)).tolist() == [1, 1, 1]
