"""What every engine does alike; then what only `ray` does: streaming, affinity, deaths."""

from __future__ import annotations

import time

import pytest
from engine_asks import CLIENTS, ask, ask_all, said
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedsim.engine.flower_internals import pack
from fedsim.errors import FedsimError

EVEN = [0.02] * len(CLIENTS)


def pid(reply) -> int:
    return said(reply)["pid"]


def timeless(reply) -> bytes:
    """The reply's bytes without what the time of day and the messages before it leave there."""
    reply.metadata.created_at = 1.0
    reply.metadata.ttl = 1.0
    reply.metadata.__dict__["_reply_to_message_id"] = ""
    return pack(reply)


def transcript(grid) -> list[bytes]:
    """Replies to two questions to every client, one of which fails for all."""
    replies = ask_all(grid, "query.echo", [f"{i}" * i for i in range(20)])
    replies += ask_all(grid, "query.fail")
    return [timeless(reply) for reply in replies]


@pytest.mark.parametrize(
    "workers", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
def test_replies_are_the_same_to_the_byte(opened, workers, request):
    with opened("inprocess") as grid:
        expected = transcript(grid)
    if workers == 2:
        assert transcript(request.getfixturevalue("ray_grid")) == expected
    else:
        with opened("ray", workers=workers) as grid:
            assert transcript(grid) == expected
    assert len(set(expected)) == 40


def test_a_server_app_runs_on_the_grid(grid):
    app, heard = ServerApp(), []

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        heard.extend(said(reply)["client"] for reply in ask_all(grid, "query.echo"))

    app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), {}))
    assert heard == CLIENTS


def test_a_client_knows_who_it_is(grid):
    answers = [said(reply) for reply in ask_all(grid, "query.echo")]
    assert [a["client"] for a in answers] == CLIENTS
    assert [a["place"] for a in answers] == list(range(20))
    assert {(a["count"], a["word"]) for a in answers} == {(20, "hello")}
    assert grid.run.override_config["word"] == "hello"
    assert [(node.node_id, node.name) for node in grid.get_nodes()] == list(
        zip(grid.get_node_ids(), CLIENTS, strict=True)
    )


def test_state_lasts_between_messages_and_a_failure_leaves_it_alone(grid):
    before = [said(r)["seen"] for r in ask_all(grid, "train.count")]
    assert all(r.has_error() for r in ask_all(grid, "train.count", [10] * 20))
    after = [said(r)["seen"] for r in ask_all(grid, "train.count")]
    assert after == [seen + 1 for seen in before]


def test_messages_to_one_client_run_one_at_a_time_in_order(grid):
    pair = grid.get_node_ids()[:2]
    before = {r.metadata.src_node_id: said(r)["seen"] for r in ask_all(grid, "train.count")}
    replies = list(
        grid.send_and_receive(ask(n, "train.count", i) for i in range(1, 6) for n in pair)
    )
    for node in pair:
        answers = [said(r) for r in replies if r.metadata.src_node_id == node]
        assert len(answers) == 5
        assert all(a["seen"] == before[node] + a["value"] for a in answers)


@pytest.mark.parametrize(
    ("message_type", "reason"),
    [
        ("query.fail", "client 'user-00' failed in query.fail: ValueError: no such thing"),
        ("query.mistake", "client 'user-00' has a silent clip: remove it"),
        ("query.leave", "client 'user-00' failed in query.leave: SystemExit: 3"),
        ("query.nothing", "client 'user-00' failed in query.nothing: it returned NoneType"),
        ("query.stray", "client 'user-00' failed in query.stray: its message is no reply"),
        ("query.unheard", "client 'user-00' failed in query.unheard: ValueError: No query"),
    ],
)
def test_a_failing_client_becomes_an_error_reply(grid, message_type, reason):
    reply = ask_all(grid, message_type)[0]
    assert reply.error.code == 2
    assert reply.error.reason.startswith(reason)
    assert "\n" not in reply.error.reason


def test_nothing_is_kept_for_a_message_that_was_pulled(opened, ray_grid):
    def held(grid, *names):
        before = [len(getattr(grid, name)) for name in names]
        ask_all(grid, "query.echo")
        return [len(getattr(grid, name)) - n for name, n in zip(names, before, strict=True)]

    shared = ["_states", "_replies"]
    with opened("inprocess") as grid:
        assert held(grid, *shared, "_node_of", "_queues") == [0] * 4
    assert held(ray_grid, *shared, "_flights", "_open", "_schedule") == [0] * 5
    assert not ray_grid._schedule._behind


def test_a_timeout_returns_what_there_is(ray_grid):
    quick, slow = ray_grid.get_node_ids()[:2]
    questions = [ask(quick, "query.process", 0.0), ask(slow, "query.process", 2.0)]
    replies = list(ray_grid.send_and_receive(questions, timeout=1.0))
    assert [reply.metadata.src_node_id for reply in replies] == [quick]
    assert said(ask_all(ray_grid, "query.echo")[1])["client"] == "user-01"  # waited for its turn


def test_replies_stream(ray_grid):
    nodes = ray_grid.get_node_ids()[:6]
    waiting = set(ray_grid.push_messages(ask(n, "query.process", 0.2) for n in nodes))
    arrivals = []
    while waiting:
        for reply in ray_grid.pull_messages(waiting):
            waiting.remove(reply.metadata.reply_to_message_id)
            arrivals.append((time.monotonic(), said(reply)))
    last_start = max(reply["start"] for _, reply in arrivals)
    assert arrivals[0][0] < last_start
    assert len({reply["pid"] for _, reply in arrivals}) == 2


def test_a_client_returns_to_its_worker(ray_grid):
    first, second = ([pid(r) for r in ask_all(ray_grid, "query.process", EVEN)] for _ in range(2))
    assert len(set(first)) == 2
    same = sum(a == b for a, b in zip(first, second, strict=True))
    assert same >= 16  # the others were stolen by a worker that had nothing left to do


def test_an_idle_worker_steals(ray_grid):
    first = [pid(r) for r in ask_all(ray_grid, "query.process", EVEN)]
    slow = [0.2 if p == first[0] else 0.0 for p in first]
    second = [pid(r) for r in ask_all(ray_grid, "query.process", slow)]
    moved = {a for a, b in zip(first, second, strict=True) if a != b}
    assert moved == {first[0]}


def test_a_worker_has_the_threads_it_was_given(opened):
    with opened("ray", clients=CLIENTS[:1], workers=1, threads=2) as grid:
        reply = said(ask_all(grid, "query.process")[0])
        assert (reply["threads"], reply["interop"], reply["omp"]) == (2, 1, "2")


@pytest.mark.slow
def test_workers_that_die(opened):
    """First a worker that a client kills once, then workers that a client always kills."""
    with opened("ray", workers=2, batch=4) as grid:
        once = [int(i == 3) for i in range(20)]
        assert [said(r)["value"] for r in ask_all(grid, "evaluate.die_once", once)] == once

        poison = [int(i == 7) for i in range(20)]
        replies = ask_all(grid, "evaluate.poison", poison)
        assert [reply.has_error() for reply in replies] == [i == 7 for i in range(20)]
        assert replies[7].error.code == 8
        assert replies[7].error.reason == (
            "client 'user-07': its worker process died 3 times while it ran (out of memory?); "
            "give it fewer clips or fewer --workers"
        )
        assert len([said(reply) for reply in ask_all(grid, "query.echo")]) == 20


@pytest.mark.slow
def test_a_group_that_kills_a_worker_runs_apart(opened, tmp_path):
    """Each group of five kills one worker; then each of it runs alone, also with what follows."""
    with opened("ray", workers=2, batch=1, group=5) as grid:
        for _ in range(2):
            replies = ask_all(grid, "evaluate.crowd", [*range(20)])
            assert [said(reply)["value"] for reply in replies] == [*range(20)]
        # A message of the same group may have waited in reserve, and begun in the new worker.
        assert 4 <= len(list(tmp_path.glob("died-*"))) <= 8


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"app": "no_such_module:app", "workers": 1}, "No module named 'no_such_module'"),
        ({"workers": 9}, "ask for fewer workers or threads"),
    ],
)
def test_an_engine_that_cannot_be_opened(opened, settings, reason):
    settings = {**settings, "wait_seconds": 0.0}
    with pytest.raises(FedsimError, match=reason), opened("ray", **settings) as grid:
        grid.get_node_ids()
