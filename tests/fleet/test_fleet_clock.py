from __future__ import annotations

import random
from dataclasses import asdict, replace

import pytest
from fleet_toys import HOUR, device, thorough, work
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import FedsimError
from fedsim.fleet import Attempt, ServerClock, StageWork
from fedsim.fleet.clock import run_clock
from fedsim.fleet.windows import read_hours

SPELLS = (
    *("unavailable_s", "download_s", "sense_s", "upload_s", "queue_s", "plan_s"),
    *("calibrate_s", "evaluate_s", "retry_s"),
)


def clock(*works, blobs=None, **server):
    """Return each client's timeline by key, and the server's totals."""
    run = run_clock(works, blobs or {}, ServerClock(**server))
    return {t.client: t for t in run.timelines}, run.server


def spells(timeline):
    """Return the spells of a timeline that are not 0."""
    return {name: value for name in SPELLS if (value := getattr(timeline, name))}


def test_one_client_by_hand():
    # A byte a second either way, latency 2 s. Sensing: 3 bytes of request and 20 of the model,
    # 500 MACs at 10 a second, 1 MB read at 1 MB a second, a summary of 4 bytes.
    # Planning 7 s. 5 bytes of request and 6 + 10 of layers (one more is held); 300 MACs at 8 bits
    # and 400 at 4: 3 + 2 s; a receipt of 2. Evaluating: 1 byte, 1000 MACs at 8 bits, 1 byte.
    blobs = {"model": 20, "one": 6, "two": 10, "three": 100}
    found, server = clock(
        work(
            profile=device(latency_s=2.0),
            sense=StageWork(("model",), {32: 500}, 2**20, 3, 4),
            personalize=StageWork(("one", "two", "three", "one"), {8: 300, 4: 400}, 0, 5, 2),
            evaluate=StageWork((), {8: 1000}, 0, 1, 1),
            held=frozenset({"three"}),
        ),
        blobs=blobs,
        plan_s=7.0,
    )
    t = found["a"]
    assert spells(t) == {
        "download_s": (2 + 23) + (2 + 21) + (2 + 1),
        "sense_s": 50 + 1,
        "upload_s": (2 + 4) + (2 + 2) + (2 + 1),
        "plan_s": 7,
        "calibrate_s": 3 + 2,
        "evaluate_s": 10,
    }
    assert t.ready_s == 25 + 51 + 6 + 7 + 23 + 5
    assert t.end_s == 117 + 4 + 3 + 10 + 3
    assert (t.outcome, t.stopped_at, t.start_s, t.retries) == ("delivered", None, 0, 0)
    # 10 J a MAC in full precision, 1 J at 8 bits, 0.5 J at 4; a joule a byte.
    assert t.joules == 5000 + (300 + 200) + 1000 + (23 + 21 + 1) + (4 + 2 + 1)
    assert (t.down_bytes, t.up_bytes) == (45, 7)
    assert server.sent_bytes == server.shared_bytes == 45
    assert server.full_bytes == 45 + 100
    assert (server.received_bytes, server.peak_queue, server.closed_s) == (7, 0, None)
    assert server.end_s == t.end_s


def test_two_devices_share_the_egress():
    # The server sends 1.5 bytes a second. Links of 1 and 10: the slow one has its 0.75 until the
    # fast one, 6 bytes at 0.75, is done at 8 s; then it has its own 1 for the 4 bytes to go.
    slow, fast = device(), device(down_mbit=8e-5)
    stage = StageWork(("x",))
    found, server = clock(
        work("slow", slow, replace(stage, blobs=("big",))),
        work("fast", fast, replace(stage, blobs=("small",))),
        blobs={"big": 10, "small": 6},
        egress_mbit=1.5 * 8e-6,
    )
    assert found["fast"].download_s == 8
    assert found["slow"].download_s == 12
    assert server.sent_bytes == 16
    # Without that limit, each has its own link.
    found, _ = clock(work("slow", slow, replace(stage, blobs=("big",))), blobs={"big": 10})
    assert found["slow"].download_s == 10


def test_the_planners_queue():
    # Summaries arrive at 1, 2 and 3 s; planning takes 10. With one planner they wait 0, 9 and 18.
    works = [work(f"c{n}", sense=StageWork(up_bytes=n)) for n in (1, 2, 3)]
    found, server = clock(*works, plan_s=10)
    assert [found[f"c{n}"].queue_s for n in (1, 2, 3)] == [0, 9, 18]
    assert [found[f"c{n}"].end_s for n in (1, 2, 3)] == [11, 21, 31]
    assert server.peak_queue == 2
    found, server = clock(*works, plan_s=10, planners=2)
    assert [found[f"c{n}"].queue_s for n in (1, 2, 3)] == [0, 0, 8]
    assert server.peak_queue == 1
    # Who arrives at the same time is served in order of keys.
    same = [work(key, sense=StageWork(up_bytes=1)) for key in "cab"]
    found, _ = clock(*same, plan_s=10)
    assert [found[key].queue_s for key in "abc"] == [0, 10, 20]


SENSING = StageWork(("x",), {32: 100}, 0, 2, 3)  # 2 + 5 bytes down, 10 s, 3 bytes up


def attempts(*tries):
    return replace(SENSING, attempts=(*tries, Attempt()))


@pytest.mark.parametrize(
    ("tries", "expected", "down", "up", "joules"),
    [
        ((), {"download_s": 7, "sense_s": 10, "upload_s": 3}, 7, 3, 1010),
        # The reply is lost: missed after 60 s, back-off 10; request and reply go again.
        (
            (Attempt("lost"),),
            {"download_s": 7 + 2, "sense_s": 10, "upload_s": 6, "retry_s": 70},
            *(9, 6, 1015),
        ),
        # Twice: 60 + 10 and 60 + 20.
        (
            (Attempt("lost"), Attempt("lost")),
            {"download_s": 7 + 4, "sense_s": 10, "upload_s": 9, "retry_s": 150},
            *(11, 9, 1020),
        ),
        # The request is lost: the device knows of nothing.
        (
            (Attempt("unreached"),),
            {"download_s": 7, "sense_s": 10, "upload_s": 3, "retry_s": 70},
            *(7, 3, 1010),
        ),
        # Crashed after 40 % of sensing, which is done again; the blob stays.
        (
            (Attempt("crashed", fraction=0.4),),
            {"download_s": 7 + 2, "sense_s": 14, "upload_s": 3, "retry_s": 70},
            *(9, 3, 1412),
        ),
        # Sensed, and lost; crashed, which loses that; sensed again.
        (
            (Attempt("lost"), Attempt("crashed", fraction=0.4)),
            {"download_s": 7 + 4, "sense_s": 20, "upload_s": 6, "retry_s": 150},
            *(11, 6, 2017),
        ),
    ],
)
def test_retries_with_back_off(tries, expected, down, up, joules):
    found, server = clock(work(sense=attempts(*tries)), blobs={"x": 5})
    t = found["a"]
    assert spells(t) == expected
    assert (t.down_bytes, t.up_bytes, t.retries) == (down, up, len(tries))
    assert t.joules == pytest.approx(joules)
    assert t.outcome == "delivered"
    assert server.sent_bytes == server.full_bytes == down


def test_how_an_exchange_can_end():
    late = replace(SENSING, attempts=(Attempt("delayed", delay_s=9),))
    gone = replace(SENSING, attempts=(Attempt("lost"), Attempt("crashed", fraction=0.5)))
    bad = replace(SENSING, attempts=(Attempt("refused"),))
    found, _ = clock(
        work("late", sense=late),
        work("gone", sense=gone),
        work("bad", sense=bad),
        work("bad receipt", personalize=bad),
        work("bad result", evaluate=bad),
        blobs={"x": 5},
    )
    assert found["late"].outcome == "delivered"
    assert found["late"].end_s == 20 + 9
    assert (found["gone"].outcome, found["gone"].stopped_at) == ("dropped", "sense")
    # The second attempt loses what the first has computed.
    assert found["gone"].end_s == 20 + 70 + 2 + 60
    assert (found["bad"].outcome, found["bad"].stopped_at) == ("quarantined", "sense")
    assert found["bad"].end_s == 20
    receipt = found["bad receipt"]
    assert (receipt.outcome, receipt.stopped_at) == ("quarantined", "personalize")
    assert receipt.ready_s is None
    # The model was delivered, whatever became of its evaluation.
    result = found["bad result"]
    assert (result.outcome, result.stopped_at, result.ready_s) == ("delivered", "evaluate", 0)


def test_a_device_that_cannot_says_so_at_once():
    # The request of 2 bytes comes, the answer of 3 goes; no blob of 5 bytes, no computing.
    failed = replace(SENSING, attempts=(Attempt("failed"),))
    later = replace(SENSING, attempts=(Attempt("lost"), Attempt("failed")))
    found, server = clock(work("a", sense=failed), work("b", sense=later), blobs={"x": 5})
    assert (found["a"].outcome, found["a"].stopped_at) == ("failed", "sense")
    assert spells(found["a"]) == {"download_s": 2, "upload_s": 3}
    assert (found["a"].down_bytes, found["a"].up_bytes, found["a"].joules) == (2, 3, 5)
    # Who had done it once, and then could not, has paid for the first.
    assert found["b"].down_bytes == 2 + 5 + 2
    assert found["b"].sense_s == 10
    assert server.sent_bytes == 2 + 9


def test_a_round_is_over_when_nobody_is_left():
    # All that is wanted never come, for one is lost: the round ends with the last, at 20 s.
    lost = StageWork(macs={8: 1000}, attempts=(Attempt("failed"),))
    works = [calibrating("a", 20), work("b", personalize=lost)]
    for server in ({"policy": "over_select", "goal": 1.0}, {"policy": "drop", "deadline_s": 30.0}):
        found, totals = clock(*works, **server)
        assert (found["a"].outcome, found["b"].outcome) == ("delivered", "failed")
        assert (totals.closed_s, totals.end_s) == (None, 20)


def test_only_a_failed_attempt_has_another():
    for tries in ([], [Attempt(), Attempt()], [Attempt("refused"), Attempt()]):
        with pytest.raises(ValueError, match="attempt"):
            StageWork(attempts=tuple(tries))


def calibrating(client, seconds, **more):
    """Return a client whose model is ready after `seconds`."""
    return work(client, personalize=StageWork(macs={8: seconds * 100}), **more)


@pytest.mark.parametrize(
    ("server", "late", "closed"),
    [
        ({}, "", None),
        ({"policy": "drop", "deadline_s": 25}, "cd", 25),
        ({"policy": "drop", "deadline_s": 100}, "", None),  # all have ended by then
        # Three of four are enough. They are not there at 15, but at 30.
        ({"policy": "extend", "deadline_s": 15, "goal": 0.75}, "d", 30),
        ({"policy": "extend", "deadline_s": 35, "goal": 0.75}, "d", 35),
        ({"policy": "over_select", "goal": 0.5}, "cd", 20),
        ({"policy": "over_select", "goal": 0.75, "deadline_s": 25}, "cd", 25),
    ],
)
def test_deadlines(server, late, closed):
    works = [
        calibrating(key, seconds) for key, seconds in zip("abcd", (10, 20, 30, 40), strict=True)
    ]
    found, totals = clock(*works, **server)
    for key, t in found.items():
        assert t.outcome == ("late" if key in late else "delivered")
        if key in late:
            assert (t.stopped_at, t.ready_s, t.end_s) == ("personalize", None, closed)
            assert t.calibrate_s == closed
            assert t.joules == closed * 100
    assert totals.closed_s == closed


def test_what_a_late_client_has_cost():
    # Cut off after 4 of 10 bytes down.
    stage = StageWork(("x",))
    server = {"policy": "drop", "deadline_s": 4}
    found, totals = clock(work(sense=stage), blobs={"x": 10}, **server)
    assert (found["a"].down_bytes, found["a"].download_s, found["a"].joules) == (4, 4, 4)
    assert totals.sent_bytes == 4
    assert totals.full_bytes == totals.shared_bytes == 10
    # After 3 of 10 bytes up, and in a planner's queue, which goes on without it.
    found, _ = clock(work(sense=StageWork(up_bytes=10)), policy="drop", deadline_s=3)
    assert (found["a"].up_bytes, found["a"].upload_s) == (3, 3)
    found, _ = clock(work("a"), work("b"), plan_s=5, policy="drop", deadline_s=8)
    assert [found[key].outcome for key in "ab"] == ["delivered", "late"]
    assert (found["b"].stopped_at, found["b"].queue_s, found["b"].plan_s) == ("plan", 5, 3)


def test_evaluation_goes_on_after_the_round_is_closed():
    found, _ = clock(
        calibrating("a", 10, evaluate=StageWork(macs={8: 5000})), policy="drop", deadline_s=20
    )
    assert (found["a"].outcome, found["a"].stopped_at, found["a"].end_s) == ("delivered", None, 60)


@pytest.mark.parametrize(
    ("joules", "spent"),
    [
        (3, {"download_s": 3}),  # a joule a byte: 3 of 5 bytes
        (5 + 250, {"download_s": 5, "sense_s": 2.5}),  # 100 J a second
        (5 + 1000 + 1, {"download_s": 5, "sense_s": 10, "upload_s": 1}),
    ],
)
def test_a_battery_that_ends(joules, spent):
    stage = StageWork(("x",), {32: 100}, 0, 0, 3)
    found, server = clock(work(profile=device(battery_j=joules), sense=stage), blobs={"x": 5})
    t = found["a"]
    assert (t.outcome, t.stopped_at, t.ready_s) == ("battery", "sense", None)
    assert spells(t) == spent
    assert t.joules == pytest.approx(joules)
    assert t.end_s == sum(spent.values())
    assert (t.down_bytes, t.up_bytes) == (min(joules, 5), spent.get("upload_s", 0))
    assert server.sent_bytes == t.down_bytes


def test_a_battery_that_just_lasts():
    stage = StageWork(("x",), {32: 100}, 0, 0, 3)
    found, _ = clock(work(profile=device(battery_j=1008.0), sense=stage), blobs={"x": 5})
    assert found["a"].outcome == "delivered"


def test_work_waits_for_a_window():
    # From 2 to 3 o'clock; a byte a second, so 3600 in a window. The round begins at 1:00.
    profile = device(available=read_hours("2-3"))
    found, _ = clock(
        work(profile=profile, sense=StageWork(("x",))), blobs={"x": 4000}, begin_hour=1
    )
    t = found["a"]
    assert t.start_s == HOUR
    assert t.end_s == 25 * HOUR + 400
    assert spells(t) == {"download_s": 4000, "unavailable_s": HOUR + 23 * HOUR}
    # Sensing the same way, and who is never available starts never.
    sensing = work(profile=profile, sense=StageWork(macs={32: 40_000}))
    t = clock(sensing, begin_hour=1)[0]["a"]
    assert spells(t) == {"sense_s": 4000, "unavailable_s": 24 * HOUR}
    t = clock(sensing, begin_hour=1, policy="drop", deadline_s=HOUR / 2)[0]["a"]
    assert (t.outcome, t.start_s, t.end_s) == ("late", None, HOUR / 2)
    assert spells(t) == {"unavailable_s": HOUR / 2}
    # Cut off in the second window.
    t = clock(sensing, begin_hour=1, policy="drop", deadline_s=25 * HOUR + 100)[0]["a"]
    assert spells(t) == pytest.approx({"sense_s": 3700, "unavailable_s": 24 * HOUR})


def test_what_the_clock_refuses():
    with pytest.raises(FedsimError, match=r"client 'a': sense computes at 5 bits.*has 4, 8, 32"):
        clock(work(sense=StageWork(macs={5: 1})))
    with pytest.raises(ValueError, match="has no size"):
        clock(work(sense=StageWork(("x",))))
    with pytest.raises(ValueError, match="the same key: give each its own"):
        clock(work("a"), work("a"))
    with pytest.raises(FedsimError, match="did you mean 'drop'"):
        ServerClock(policy="drops")
    with pytest.raises(FedsimError, match="needs deadline_s"):
        ServerClock(policy="drop")
    with pytest.raises(FedsimError, match="leave it out, or use extend"):
        ServerClock(policy="drop", deadline_s=5, goal=0.5)


def test_nobody():
    found, server = clock()
    assert (found, server.end_s, server.sent_bytes) == ({}, 0, 0)


BLOBS = {"base": 700, "p": 40, "q": 90, "r": 150}


@st.composite
def stages(draw, blobs):
    tries = draw(
        st.lists(
            st.sampled_from(
                [Attempt("lost"), Attempt("unreached"), Attempt("crashed", fraction=0.5)]
            ),
            max_size=2,
        )
    )
    last = draw(st.sampled_from([Attempt()] * 6 + [Attempt("delayed", 5), Attempt("refused")]))
    return StageWork(
        blobs=tuple(draw(st.lists(st.sampled_from(blobs), max_size=3))),
        macs=draw(st.dictionaries(st.sampled_from([4, 8, 32]), st.integers(1, 3000), max_size=2)),
        down_bytes=draw(st.integers(0, 20)),
        up_bytes=draw(st.integers(0, 30)),
        attempts=(*tries, last),
    )


@st.composite
def fleets(draw):
    """Return the clients and the server of a small round in which everything can happen."""
    works = []
    for i in range(draw(st.integers(1, 7))):
        profile = device(
            device=draw(st.sampled_from(["phone", "watch"])),
            down_mbit=8e-6 * draw(st.sampled_from([0.5, 1, 1, 7])),
            latency_s=draw(st.sampled_from([0.0, 1.5])),
            battery_j=draw(st.sampled_from([None, None, 500.0, 20_000.0])),
            available=read_hours(draw(st.sampled_from(["always", "0-0.1 12-13", "20-3"]))),
        )
        held = frozenset(draw(st.sets(st.sampled_from(list(BLOBS)), max_size=2)))
        sense, personalize = draw(stages(["base"])), draw(stages(["p", "q", "r"]))
        works.append(work(f"c{i}", profile, sense, personalize, draw(stages(["p"])), held))
    server = {
        "egress_mbit": draw(st.sampled_from([None, 8e-6, 3e-5])),
        "planners": draw(st.integers(1, 2)),
        "plan_s": draw(st.sampled_from([0.0, 12.0])),
        "begin_hour": draw(st.sampled_from([0.0, 11.5])),
    }
    return works, server


@thorough
@given(fleets(), st.sampled_from([None, 100.0, 5000.0]), st.randoms(use_true_random=False))
def test_what_every_round_keeps(fleet, deadline, rng: random.Random):
    works, server = fleet
    if deadline is not None:
        server = {**server, "policy": "drop", "deadline_s": deadline}
    found, totals = clock(*works, blobs=BLOBS, **server)
    for t in found.values():
        assert sum(spells(t).values()) == pytest.approx(t.end_s, abs=1e-6)
        assert all(value >= -1e-9 for value in spells(t).values())
        assert (t.ready_s is not None) == (t.outcome == "delivered")
        assert (t.stopped_at is None) <= (t.outcome == "delivered")
        if deadline is not None and t.outcome != "delivered":
            assert t.end_s <= deadline
    by_client = {w.client: w for w in works}
    for key, t in found.items():
        battery = by_client[key].profile.battery_j
        assert battery is None or t.joules <= battery + 1e-6
    # What left the server is what arrived, and sharing can only save.
    assert totals.sent_bytes == sum(t.down_bytes for t in found.values())
    assert totals.received_bytes == sum(t.up_bytes for t in found.values())
    assert totals.sent_bytes <= totals.full_bytes
    assert totals.shared_bytes <= totals.full_bytes
    finished = [t for t in found.values() if t.stopped_at is None]
    for t in finished:
        client = by_client[t.client]
        done = (client.sense, client.personalize, client.evaluate)
        reached = [sum(a.outcome != "unreached" for a in stage.attempts) for stage in done]
        lacking = {name for stage in done for name in stage.blobs} - client.held
        requests = sum(n * stage.down_bytes for n, stage in zip(reached, done, strict=True))
        assert t.down_bytes == requests + sum(BLOBS[name] for name in lacking)
    # The order in which clients are given makes no difference.
    shuffled = rng.sample(works, len(works))
    again, same = clock(*shuffled, blobs=BLOBS, **server)
    assert [asdict(t) for t in again.values()] == [asdict(t) for t in found.values()]
    assert same == totals


@pytest.mark.slow
@thorough
@given(fleets(), st.floats(50, 2000), st.floats(1, 10))
def test_a_later_deadline_leaves_out_nobody_else(fleet, deadline, factor):
    works, server = fleet
    sets = []
    for seconds in (deadline, deadline * factor):
        found, _ = clock(*works, blobs=BLOBS, **server, policy="drop", deadline_s=seconds)
        sets.append({key for key, t in found.items() if t.outcome == "delivered"})
    assert sets[0] <= sets[1]


@pytest.mark.slow
@thorough
@given(fleets(), st.sampled_from(["macs_per_s", "down_mbit", "up_mbit"]), st.floats(1, 20))
def test_a_better_device_alone_is_no_later(fleet, quantity, factor):
    works, server = fleet
    slow = replace(works[0], profile=replace(works[0].profile, battery_j=None))
    value = getattr(slow.profile, quantity)
    faster = (
        {bits: n * factor for bits, n in value.items()}
        if isinstance(value, dict)
        else value * factor
    )
    fast = replace(slow, profile=replace(slow.profile, **{quantity: faster}))
    before, after = (clock(w, blobs=BLOBS, **server)[0]["c0"] for w in (slow, fast))
    assert after.end_s <= before.end_s + 1e-6
    assert after.outcome == before.outcome


@pytest.mark.slow
@thorough
@given(fleets(), st.floats(1, 5))
def test_more_egress_makes_no_download_later(fleet, factor):
    # One download each, for what is fetched later may meet others.
    works, _ = fleet
    works = [work(w.client, replace(w.profile, battery_j=None), w.sense) for w in works]
    works = [replace(w, sense=replace(w.sense, attempts=(Attempt(),))) for w in works]
    narrow, wide = (
        clock(*works, blobs=BLOBS, egress_mbit=mbit)[0] for mbit in (8e-6, 8e-6 * factor)
    )
    for key, t in wide.items():
        assert t.end_s <= narrow[key].end_s + 1e-6
