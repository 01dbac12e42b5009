"""How results are spread over clients, against counting by hand and one client at a time."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.base.fairness import over_clients, share_no_worse

RATES = st.lists(st.integers(0, 300), min_size=1, max_size=45)
CLIPS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=6)


def test_a_worked_example():
    """Twelve clients: the worst tenth is two of them, (60 + 40) / 2."""
    found = over_clients([10.0] * 10 + [60.0, 40.0])
    assert (found.clients, found.median, found.worst_tenth) == (12, 10.0, 50.0)
    assert found.mean == pytest.approx(200 / 12)
    assert found.spread == pytest.approx(math.sqrt((1000 + 3600 + 1600) / 12 - (200 / 12) ** 2))
    assert over_clients([]) is None


@given(RATES, st.booleans())
def test_every_number_by_brute_force(rates, higher_is_better):
    found = over_clients(list(map(float, rates)), higher_is_better=higher_is_better)
    left, worst = list(rates), []
    while 10 * len(worst) < len(rates):
        worst.append(min(left) if higher_is_better else max(left))
        left.remove(worst[-1])
    mean = Fraction(sum(rates), len(rates))
    variance = sum((rate - mean) ** 2 for rate in rates) / len(rates)
    assert found.worst_tenth == pytest.approx(sum(worst) / len(worst))
    assert found.mean == pytest.approx(float(mean))
    assert found.spread == pytest.approx(math.sqrt(variance), abs=1e-6)
    middle = sorted(rates)[(len(rates) - 1) // 2 : len(rates) // 2 + 1]
    assert found.median == pytest.approx(sum(middle) / len(middle))


@given(st.lists(CLIPS, max_size=4))
def test_clips_that_are_no_worse_by_brute_force(clients):
    pairs = [([one for one, _ in clips], [other for _, other in clips]) for clips in clients]
    verdicts = [not one > other for clips in clients for one, other in clips]
    expected = verdicts.count(True) / len(verdicts) if verdicts else None
    assert share_no_worse(pairs) == expected


def test_clips_must_match():
    with pytest.raises(ValueError, match="longer"):
        share_no_worse([([1], [1, 2])])
