"""The server's side with scripted clients: order of messages, replies that do not fit, ledger."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from fedsim_server.planner import Planner
from flwr.app import ConfigRecord, RecordDict
from scripted import DEPTHS, FULL_BYTES, NODES, OWN, SHARED, SIZES, but, run_scripted, scenario

from fedsim.engine.flower_internals import server_identity
from fedsim.protocol import messages as m
from fedsim.results.records import Failure
from fedsim.scenario.cells import stages


@pytest.fixture(autouse=True)
def identity():
    with server_identity():
        yield


@pytest.fixture
def run(tmp_path):
    return partial(run_scripted, tmp_path)


def test_without_sharing_each_client_goes_through_in_one_go(run):
    grid, rows, failures, _ = run(OWN)
    assert failures == []
    stages_of = {key: [k for who, k in grid.sent if who == key] for key in NODES.values()}
    order = [m.SENSE, m.PERSONALIZE, m.EVALUATE]
    assert stages_of == dict.fromkeys(NODES.values(), order)
    assert [(r.client, r.method, r.tuned_on) for r in rows] == [
        (key, method, source)
        for key in NODES.values()
        for method, source in (("fp32", ""), ("myqasr/minmax", key))
    ]
    assert stages(scenario(*OWN)) == ("personalize",)


def test_a_client_that_has_begun_is_finished_before_the_next_is_sensed(run):
    """With `window` messages in flight, the latest is answered first by this Grid."""
    for window in (1, 3):
        grid, _, _, _ = run(OWN, names={i: f"c{i}" for i in range(10, 19)}, window=window)
        assert grid.max_waiting <= window
        for key in grid.names.values():
            places = [i for i, (who, _) in enumerate(grid.answered) if who == key]
            assert places == list(range(places[0], places[0] + 3))


def test_with_sharing_everybody_is_personalized_first(run):
    grid, rows, failures, _ = run(SHARED)
    assert failures == []
    kinds = [kind for _, kind in grid.sent]
    assert kinds == [m.SENSE] * 3 + [m.PERSONALIZE] * 3 + [m.EVALUATE] * 3
    tuned = {(r.client, r.tuned_on) for r in rows if r.method != "fp32"}
    ring = {("ann", "bob"), ("bob", "cyd"), ("cyd", "ann")}
    assert tuned == ring | {(k, k) for k in NODES.values()}
    assert stages(scenario(*SHARED)) == ("sense", "personalize", "evaluate")


def test_full_precision_alone_delivers_nothing(run):
    grid, rows, failures, releases = run(("fp32",))
    assert failures == []
    assert {kind for _, kind in grid.sent} == {m.SENSE, m.EVALUATE}
    assert [r.method for r in rows] == ["fp32"] * 3
    assert {r.bytes for r in releases if r.field in ("measure", "sensitivity", "candidates")} == {0}


def test_a_grid_without_names(run):
    """Flower's own Grid does not tell keys: they come with the first answer."""
    _, rows, failures, _ = run(SHARED, known=False)
    assert failures == []
    assert rows == run(SHARED)[1]
    _, _, failures, _ = run(OWN, but("bob", m.SENSE, "no clips"), known=False)
    assert failures == [Failure("node 12", "sense", "no clips")]


def test_a_grid_that_is_slow(run):
    assert run(OWN, delay=5)[1] == run(OWN)[1]


INF = float("inf")
LONG = "turn left at the next corner " * 100


def summary(client="bob", budget=300, values=(1.0, 2.0), depths=()) -> m.Summary:
    return m.Summary(client, budget, DEPTHS, 4, values, depths=depths)


def scores(client="bob", models=2) -> m.Scores:
    sizes = (FULL_BYTES, SIZES.total((8, 8)))[:models]
    return m.Scores(client, 4, sizes, *[(1,) * models] * 4, (), *[(0.0,) * models] * 2)


PART = RecordDict({"message": ConfigRecord({"protocol": m.PROTOCOL, "client": "bob"})})
ENDING = [
    # (message, stage of the failure, bob's reply, what the reason begins with)
    (m.SENSE, "sense", "client 'bob': no clips", "client 'bob': no clips"),
    (m.SENSE, "sense", "", "the client failed without a reason"),
    (m.PERSONALIZE, "personalize", "out of memory", "out of memory"),
    (m.EVALUATE, "evaluate", "out of memory", "out of memory"),
    (m.SENSE, "sense", RecordDict(), "the message from client 'bob' is not a valid Summary"),
    (
        m.SENSE,
        "sense",
        m.Receipt("bob", (), ()),
        "the message from client 'bob' is not a valid Summary",
    ),
    (m.PERSONALIZE, "personalize", PART, "the message from client 'bob' is not a valid Receipt"),
    (m.SENSE, "sense", summary("ann"), "client 'bob' answered as 'ann'"),
    (m.SENSE, "sense", summary(LONG), "client 'bob' answered as 'turn left"),
    (m.EVALUATE, "evaluate", scores("ann"), "client 'bob' answered as 'ann'"),
    (m.SENSE, "sense", summary(values=(1.0,)), "client 'bob' sent 1 values of a layer"),
    (m.SENSE, "sense", summary(values=(1.0, INF)), "client 'bob' sent inf as a sensitivity"),
    (m.SENSE, "sense", summary(depths=(2, 4)), "client 'bob' sent (2, 4) as the depths of a table"),
    (m.SENSE, "plan", summary(budget=20), "client 'bob': a budget of 20 bytes"),
    (m.EVALUATE, "evaluate", scores(models=1), "client 'bob' sent 1 sizes of models"),
    *(
        (
            m.EVALUATE,
            "evaluate",
            replace(scores(), **loops),
            "client 'bob' sent ",
        )
        for loops in (
            {"errors": (-1000, 0)},
            {"looped": (1, 1)},
            {"correct": (1, 1)},
            {"high": (1.0, INF)},
        )
    ),
]


def test_a_reply_that_ends_a_clients_part(run):
    """The others go on as if it had not taken part, and it is asked no further."""
    others = [r for r in run(OWN)[1] if r.client != "bob"]
    for kind, stage, answer, beginning in ENDING:
        grid, rows, failures, _ = run(OWN, but("bob", kind, answer))
        ((client, found, reason),) = [(f.client, f.stage, f.reason) for f in failures]
        assert (client, found) == ("bob", stage)
        assert reason.startswith(beginning)
        assert len(reason) < 300
        assert rows == others
        sent = list(dict.fromkeys(k for who, k in grid.sent if who == "bob"))
        reached = {"sense": 1, "plan": 1, "personalize": 2, "evaluate": 3}[stage]
        assert sent == [m.SENSE, m.PERSONALIZE, m.EVALUATE][:reached]


def test_ranges_that_are_not_those_of_the_models(run):
    for ranges in ((), (0.0, 1.0), (0.0, 1.0) * 3):
        answer = but("bob", m.PERSONALIZE, m.Receipt("bob", (SIZES.total((8, 8)),), ranges))
        _, rows, failures, _ = run(SHARED, answer)
        reasons = {f.client: f.reason for f in failures}
        assert set(reasons) == {"ann", "bob"}
        assert f"client 'bob' sent {len(ranges)} ends of activation ranges" in reasons["bob"]
        assert {r.client for r in rows} == {"ann", "cyd"}


def test_releases(run):
    """Every field of every message, up and down, of clients that finish and of those that fail."""
    _, _, _, releases = run(OWN, but("bob", m.EVALUATE, "out of memory"))
    up = {
        key: {
            (r.stage, r.field): r.bytes for r in releases if (r.client, r.direction) == (key, "up")
        }
        for key in NODES.values()
    }
    assert up["ann"] == up["cyd"]
    expected = {
        "sense": {
            "client": 3,
            "budget_bytes": 8,
            "bit_depths": 24,
            "clips": 8,
            "sensitivity": 16,
            "quantiles": 0,
            "workload": 0,
            "payload": 0,
            "depths": 0,
            "language": 0,
        },
        "personalize": {"client": 3, "file_bytes": 8, "ranges": 0, "blobs": 0},
        "evaluate": {
            **dict.fromkeys(
                ("file_bytes", "errors", "words", "char_errors", "chars", "low", "high"), 16
            ),
            "client": 3,
            "clips": 8,
            "correct": 0,
            "looped": 0,
            "looped_errors": 0,
            "looped_words": 0,
            "rare_errors": 0,
            "rare_words": 0,
            "clip_wrong": 0,
            "clip_of": 0,
            "workload": 0,
        },
    }
    assert up["ann"] == {(s, f): n for s, fields in expected.items() for f, n in fields.items()}
    assert up["bob"] == {k: n for k, n in up["ann"].items() if k[0] != "evaluate"}
    down = [r for r in releases if (r.client, r.direction) == ("ann", "down")]
    assert {(r.stage, r.field): r.bytes for r in down}["personalize", "model myqasr/minmax"] == 276


@pytest.mark.parametrize(("method", "stage"), [("own", "plan"), ("layers", "evaluate")])
def test_what_still_raises_for_one_answer_is_that_clients_failure(tmp_path, method, stage):
    """A defect of the server: it costs one client, and says where it is."""

    def frail(self, client):
        if client.client == "bob":
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
        return getattr(Planner, method)(self, client)

    planner = type("Frail", (Planner,), {method: frail})
    _, rows, failures, _ = run_scripted(tmp_path, OWN, planner=planner)
    ((client, found, reason),) = [(f.client, f.stage, f.reason) for f in failures]
    assert (client, found) == ("bob", stage)
    assert "client 'bob'" in reason
    assert "OverflowError: Python int too large to convert to SQLite INTEGER at " in reason
    assert reason.endswith("report it as a defect)")
    assert {row.client for row in rows} == {"ann", "cyd"}
