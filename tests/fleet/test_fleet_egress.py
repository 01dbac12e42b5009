from __future__ import annotations

import math

import pytest
import simpy
from fleet_toys import thorough
from hypothesis import given
from hypothesis import strategies as st

from fedsim.fleet.egress import Egress, Flow


def fair_rates(links, capacity):
    """Return the max-min fair rate of each link, slowest first, by the textbook's filling."""
    rates, left = {}, capacity
    for place, (link, i) in enumerate(sorted((link, i) for i, link in enumerate(links))):
        rates[i] = min(link, left / (len(links) - place))
        left -= rates[i]
    return [rates[i] for i in range(len(links))]


def brute_force(flows, capacity):
    """Return when each (start, size, link) ends, following all of them through every change."""
    ends = [math.inf] * len(flows)
    left = [size for _, size, _ in flows]
    t = 0.0
    while math.inf in ends:
        active = [i for i, (start, _, _) in enumerate(flows) if start <= t and ends[i] == math.inf]
        rates = dict(zip(active, fair_rates([flows[i][2] for i in active], capacity), strict=True))
        later = [start for start, _, _ in flows if start > t]
        until = min([t + left[i] / rates[i] for i in active] + later)
        for i in active:
            left[i] -= rates[i] * (until - t)
            if left[i] <= 1e-9 * flows[i][1]:
                ends[i] = until
        t = until
    return ends


def run(flows, capacity):
    env = simpy.Environment()
    egress = Egress(env, capacity)
    ends = [0.0] * len(flows)

    def one(i, start, size, link):
        yield env.timeout(start)
        flow = egress.send(size, link)
        yield flow.done
        assert flow.left == 0
        ends[i] = env.now

    for i, flow in enumerate(flows):
        env.process(one(i, *flow))
    env.run()
    return ends


def test_sharing_by_hand():
    # 12 bytes a second. Alone: limited by its own 10. From 1 s on two share 6 and 6; the second,
    # 18 bytes, ends at 4 s, when the first has had 10 + 18 of its 48 and 20 to go at 10 a second.
    assert run([(0, 48, 10), (1, 18, 10)], 12) == [6, 4]
    # What the slow link leaves over is the fast one's: 2 and 10.
    assert run([(0, 20, 2), (0, 50, 100)], 12) == [10, 5]
    # Three slow ones, of 2 each, leave 6 of 12: nothing is shared.
    assert run([(0, 4, 2), (0, 8, 2), (0, 12, 2)], 12) == [2, 4, 6]
    # No limit: everybody's own link.
    assert run([(0, 48, 10), (1, 18, 3)], math.inf) == [4.8, 7]


@thorough
@given(
    st.lists(
        st.tuples(
            st.floats(0, 10), st.floats(0.5, 100), st.sampled_from([0.5, 1, 1, 2, 3, 5, 8, 40])
        ),
        min_size=1,
        max_size=25,
    ),
    st.sampled_from([0.7, 2, 5, 8, 24, 1000]),
)
def test_shared_as_by_brute_force(flows, capacity):
    assert run(flows, capacity) == pytest.approx(brute_force(flows, capacity), rel=1e-6)


@thorough
@given(
    st.lists(st.tuples(st.floats(1, 50), st.floats(0.5, 10)), min_size=2, max_size=12),
    st.floats(0.1, 5),
    st.floats(1, 20),
)
def test_a_flow_that_stops_leaves_its_share(flows, stop, capacity):
    # All begin at once; the first is taken away at `stop`. Until then it had its fair share.
    env = simpy.Environment()
    egress = Egress(env, capacity)
    sent: list[Flow] = [egress.send(size, link) for size, link in flows]
    ends = {}
    for i, flow in enumerate(sent):
        flow.done.callbacks.append(lambda _, i=i: ends.setdefault(i, env.now))
    env.run(stop)
    egress.stop(sent[0])
    env.run()
    as_if = brute_force([(0, size, link) for size, link in flows], capacity)
    if as_if[0] <= stop:
        assert sent[0].left == 0
        return
    # What it was sent is what a flow of just that size would have had by then.
    cut = [(0, size, link) for size, link in flows]
    cut[0] = (0, flows[0][0] - sent[0].left, flows[0][1])
    expected = brute_force(cut, capacity)
    assert expected[0] == pytest.approx(stop, rel=1e-6)
    assert [ends[i] for i in range(1, len(flows))] == pytest.approx(expected[1:], rel=1e-6)


def test_thousands_that_end_at_once():
    n = 3000
    assert run([(0, 10, 5)] * n, 5 * n) == pytest.approx([2] * n)
    assert run([(0, 10, 5)] * n, n) == pytest.approx([10] * n)
