"""The server's side with scripted clients: order of messages, replies that do not fit, ledger."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch
from fedsim_server.coordinator import Coordinator
from fedsim_server.messaging import WINDOW, Outgoing, stream
from fedsim_server.planner import Planner
from fedsim_server.roster import Roster
from fedsim_server.rows import result_rows
from fedsim_server.summaries import summary_reader
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedsim.engine.flower_internals import server_identity, set_message_id
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.quant.allocation import Sizes
from fedsim.quant.bank import BlobStore, LayerBank
from fedsim.quant.layers import Layer
from fedsim.quant.packing import packed_bytes
from fedsim.results.ledger import Ledger
from fedsim.results.records import Failure
from fedsim.scenario.cells import needs_others, stages
from fedsim.scenario.schema import Scenario

LAYERS = (Layer("one", "linear", (8, 10)), Layer("two", "linear", (8, 12)))
DEPTHS = (2, 4, 8)
NODES = {11: "ann", 12: "bob", 13: "cyd"}


class ScriptedGrid:
    """A Grid that answers with `answer(client, type, record)`; a list of what was sent."""

    def __init__(self, answer, names=NODES, delay=0):
        self.answer, self.names, self.delay = answer, names, delay
        self.sent, self.answered, self.max_waiting = [], [], 0
        self.waiting: dict[str, Message] = {}

    def get_node_ids(self):
        return list(self.names)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            message_id = f"{len(self.sent):032x}"
            set_message_id(message, message_id)
            kind = message.metadata.message_type
            self.sent.append((self.names[message.metadata.dst_node_id], kind))
            self.waiting[message_id] = message
            ids.append(message_id)
        self.max_waiting = max(self.max_waiting, len(self.waiting))
        return ids

    def pull_messages(self, message_ids):
        if self.delay:
            self.delay -= 1
            return []
        message_id = next(iter(message_ids))
        message = self.waiting.pop(message_id)
        client = self.names[message.metadata.dst_node_id]
        self.answered.append((client, message.metadata.message_type))
        found = self.answer(client, message.metadata.message_type, message.content)
        if isinstance(found, str):
            return [Message(Error(2, found), reply_to=message)]
        content = found if isinstance(found, RecordDict) else codec.to_record(found)
        return [Message(content, reply_to=message)]


@pytest.fixture(autouse=True)
def identity():
    with server_identity():
        yield


def scenario(*methods) -> Scenario:
    return Scenario.model_validate(
        {
            "name": "toy",
            "model": {"id": "none"},
            "corpus": {"path": "none", "group_by": "speaker"},
            "clients": {"budget_mb": 1.0, "bit_depths": list(DEPTHS)},
            "methods": list(methods),
        }
    )


OWN = ("fp32", {"allocation": "myqasr", "calibration": ["minmax"]})
SHARED = ("fp32", {"allocation": "myqasr", "calibration": ["minmax"], "tuned_on": ["own", "other"]})


def good(client, kind, record):
    """What an honest client answers."""
    if kind == m.SENSE:
        measure = codec.from_record(m.SenseRequest, record, "the server").measure
        return m.Summary(client, 300, DEPTHS, 4, (2.0, 1.0) if measure else ())
    if kind == m.PERSONALIZE:
        delivery = codec.from_record(m.Delivery, record, "the server")
        n = len(delivery.candidates)
        return m.Receipt(client, (250,) * n, (0.0, 1.0) * 2 * n if delivery.return_ranges else ())
    evaluation = codec.from_record(m.Evaluation, record, "the server")
    n = len(evaluation.candidates) + evaluation.full_precision
    counts = [(100 + i, i, 5, 2 * i, 20) for i in range(n)]
    columns = list(zip(*counts, strict=True)) or [()] * 5
    return m.Scores(client, 4, *columns, (), (0.0,) * n, (1.0,) * n)


@pytest.fixture
def run(tmp_path):
    """Run a study of scripted clients; return its grid, rows, failures and releases."""

    def run_(methods, answer=good, names=NODES, known=True, window=WINDOW, **options):
        weights = {a.name: torch.ones(a.shape) for a in LAYERS}
        table = np.array([[packed_bytes(a.n_weights, d) for d in DEPTHS] for a in LAYERS])
        study = scenario(*methods)
        bank = LayerBank(weights, LAYERS, "per_tensor", BlobStore(tmp_path / "bank"))
        planner = Planner(study, Sizes(DEPTHS, table, 100), bank)
        grid = ScriptedGrid(answer, names, **options)
        with Ledger(tmp_path / f"{len(list(tmp_path.iterdir()))}.sqlite") as ledger:
            known_names = dict(names) if known else {}
            Coordinator(
                grid,
                study,
                planner,
                Roster(ledger, known_names, needs_others(study)),
                summary_reader(study, len(LAYERS), None),
                window=window,
                pause_s=0.0,
            ).run()
            return grid, ledger.rows(), ledger.failures(), ledger.all_releases()

    return run_


def but(client, kind, answer):
    """Return honest clients, but for one reply of one of them."""

    def answer_(who, what, record):
        return answer if (who, what) == (client, kind) else good(who, what, record)

    return answer_


def test_without_sharing_each_client_goes_through_in_one_go(run):
    grid, rows, failures, _ = run(OWN)
    assert failures == []
    stages_of = {key: [k for who, k in grid.sent if who == key] for key in NODES.values()}
    order = [m.SENSE, m.PERSONALIZE, m.EVALUATE]
    assert stages_of == dict.fromkeys(NODES.values(), order)
    assert [(r.client, r.method, r.tuned_on) for r in rows] == [
        (key, method, source)
        for key in NODES.values()
        for method, source in (("fp32", "-"), ("myqasr/minmax", key))
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


@pytest.mark.parametrize(
    ("kind", "stage", "answer", "sentence"),
    [
        (m.SENSE, "sense", "client 'bob': no clips", "client 'bob': no clips"),
        (m.SENSE, "sense", "", "the client failed without a reason"),
        (m.PERSONALIZE, "personalize", "out of memory", "out of memory"),
        (m.EVALUATE, "evaluate", "out of memory", "out of memory"),
        (m.SENSE, "sense", RecordDict(), "the message from client 'bob' is no Summary: it holds"),
        (
            m.SENSE,
            "sense",
            m.Receipt("bob", (), ()),
            "the message from client 'bob' is no Summary: field 'bit_depths' is missing",
        ),
        (
            m.PERSONALIZE,
            "personalize",
            RecordDict({"message": ConfigRecord({"protocol": m.PROTOCOL, "client": "bob"})}),
            "the message from client 'bob' is no Receipt: field",
        ),
        (
            m.SENSE,
            "sense",
            m.Summary("ann", 300, DEPTHS, 4, (1.0, 2.0)),
            "client 'bob' answered in the name of 'ann'",
        ),
        (
            m.SENSE,
            "sense",
            m.Summary("turn left at the next corner " * 100, 300, DEPTHS, 4, (1.0, 2.0)),
            "client 'bob' answered in the name of 'turn left at the next",
        ),
        (
            m.EVALUATE,
            "evaluate",
            m.Scores("ann", 4, *[(1, 2)] * 5, (), *[(0.0, 0.0)] * 2),
            "client 'bob' answered in the name of 'ann'",
        ),
        (
            m.SENSE,
            "sense",
            m.Summary("bob", 300, DEPTHS, 4, (1.0,)),
            "client 'bob' sent a sensitivity summary of 1 values for a model of 2 layers",
        ),
        (
            m.SENSE,
            "sense",
            m.Summary("bob", 300, DEPTHS, 4, (1.0, float("inf"))),
            "client 'bob' sent inf as the sensitivity of layer 1: it must be finite",
        ),
        (
            m.SENSE,
            "plan",
            m.Summary("bob", 20, DEPTHS, 4, (1.0, 2.0)),
            "client 'bob': a budget of 20 bytes (0.00 MB) is below the smallest feasible",
        ),
        (
            m.EVALUATE,
            "evaluate",
            m.Scores("bob", 4, *[(1,)] * 5, (), *[(0.0,)] * 2),
            "client 'bob' sent scores that do not fit the request",
        ),
    ],
)
def test_a_reply_that_ends_a_clients_part(run, kind, stage, answer, sentence):
    grid, rows, failures, _ = run(OWN, but("bob", kind, answer))
    ((client, found, reason),) = [(f.client, f.stage, f.reason) for f in failures]
    assert (client, found) == ("bob", stage)
    assert reason.startswith(sentence)
    assert len(reason) < 300
    assert [r.client for r in rows] == ["ann", "ann", "cyd", "cyd"]
    assert rows == [r for r in run(OWN)[1] if r.client != "bob"]
    at = list(dict.fromkeys(k for who, k in grid.sent if who == "bob"))
    reached = {"sense": 1, "plan": 1, "personalize": 2, "evaluate": 3}[stage]
    assert at == [m.SENSE, m.PERSONALIZE, m.EVALUATE][:reached]


@pytest.mark.parametrize("ranges", [(), (0.0, 1.0), (0.0, 1.0) * 3])
def test_ranges_that_are_not_those_of_the_models(run, ranges):
    answer = but("bob", m.PERSONALIZE, m.Receipt("bob", (250,), ranges))
    _, rows, failures, _ = run(SHARED, answer)
    reasons = {f.client: f.reason for f in failures}
    assert set(reasons) == {"ann", "bob"}
    assert (
        f"client 'bob' sent {len(ranges)} numbers for the ranges of 1 models of 2" in reasons["bob"]
    )
    assert {r.client for r in rows} == {"ann", "cyd"}


def test_rows_of_a_recognizer(run):
    _, rows, _, _ = run(OWN)
    full, own = rows[:2]
    assert (full.method, full.allocation, full.calibration) == ("fp32", "fp32", "-")
    assert (full.mean_bits, full.plan_sha256, full.tuned_on) == (32.0, "", "-")
    assert (own.method, own.allocation, own.calibration) == ("myqasr/minmax", "myqasr", "minmax")
    assert (own.file_bytes, own.errors, own.words) == (101, 1, 5)
    assert (own.wer, own.cer, own.budget_bytes) == (0.2, 0.1, 300)
    assert (own.low, own.high, own.clips) == (0.0, 1.0, 4)
    assert (own.correct, own.accuracy) == (None, None)
    assert DEPTHS[0] <= own.mean_bits <= DEPTHS[-1]


def rows_of(scores: m.Scores, planner=None):
    study = scenario(*OWN)
    bank = LayerBank({}, LAYERS, "per_tensor", None)
    request = m.Evaluation(True, ())
    return result_rows(request, scores, 300, Planner(study, None, bank))


def test_rows_of_a_classifier():
    (row,) = rows_of(m.Scores("ann", 4, (100,), (), (), (), (), (3,), (0.5,), (1.0,)))
    assert (row.correct, row.accuracy) == (3, 0.75)
    assert (row.errors, row.words, row.wer, row.char_errors, row.chars, row.cer) == (None,) * 6
    (none,) = rows_of(m.Scores("ann", 4, (100,), (), (), (), (), (0,), (0.0,), (0.0,)))
    assert (none.correct, none.accuracy) == (0, 0.0)


def test_a_rate_over_nothing_is_none():
    nan = float("nan")
    scores = m.Scores("ann", 4, (100,), (2,), (0,), (5,), (0,), (), (nan,), (nan,))
    (row,) = rows_of(scores)
    assert (row.errors, row.words, row.wer, row.cer) == (2, 0, None, None)
    assert (row.low, row.high) == (None, None)


def test_allocations_are_names_that_a_scenario_may_use(run):
    """Rows can be grouped by allocation: a draw or an order is no allocation of its own."""
    methods = (
        {"allocation": "shuffled", "draws": 2, "calibration": ["none"]},
        {"allocation": "myqasr", "order": "ascending", "calibration": ["none", "minmax"]},
    )
    _, rows, _, _ = run(methods)
    assert {(r.method, r.allocation) for r in rows} == {
        ("shuffled-1/none", "shuffled"),
        ("shuffled-2/none", "shuffled"),
        ("myqasr-asc/none", "myqasr"),
        ("myqasr-asc/minmax", "myqasr"),
    }


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
        },
        "personalize": {"client": 3, "file_bytes": 8, "ranges": 0},
        "evaluate": {
            **dict.fromkeys(
                ("file_bytes", "errors", "words", "char_errors", "chars", "low", "high"), 16
            ),
            "client": 3,
            "clips": 8,
            "correct": 0,
            "clip_wrong": 0,
            "clip_of": 0,
            "workload": 0,
        },
    }
    assert up["ann"] == {(s, f): n for s, fields in expected.items() for f, n in fields.items()}
    assert up["bob"] == {k: n for k, n in up["ann"].items() if k[0] != "evaluate"}
    down = [r for r in releases if (r.client, r.direction) == ("ann", "down")]
    assert {(r.stage, r.field): r.bytes for r in down}["personalize", "model myqasr/minmax"] == 250


def outgoing(n):
    return [Outgoing(i + 100, m.SENSE, m.SenseRequest("x")) for i in range(n)]


def stream_all(n, follow=None):
    grid = ScriptedGrid(good, {i + 100: f"c{i}" for i in range(n + 500)})
    follow_ups: deque = deque()
    found = []
    for sent, reply, fresh in stream(grid, iter(outgoing(n)), follow_ups):
        assert fresh
        assert codec.from_record(m.Summary, reply.content, "x").client == grid.names[sent.node]
        found.append(sent)
        if follow:
            follow(sent, follow_ups)
    return grid, found


@pytest.mark.parametrize("n", [0, 1, 127, 128, 129, 700])
def test_a_stream_of_any_length(n):
    grid, found = stream_all(n)
    assert sorted(out.node for out in found) == [i + 100 for i in range(n)]
    assert grid.max_waiting <= WINDOW
    assert not grid.waiting


def test_what_is_appended_is_sent_before_the_rest():
    def follow(sent, follow_ups):
        if 230 <= sent.node < 235:  # among the first to answer
            follow_ups.append(replace(sent, node=sent.node + 500))

    grid, found = stream_all(300, follow)
    assert len(found) == 305
    names = [who for who, _ in grid.sent]
    assert names.index("c630") < names.index("c299")


def test_a_stream_is_read_as_there_is_room():
    """A generator over a million clients is not turned into a list of messages."""
    read = []

    def messages():
        for out in outgoing(1000):
            read.append(out)
            yield out

    grid = ScriptedGrid(good, {i + 100: f"c{i}" for i in range(1000)})
    for number, _ in enumerate(stream(grid, messages(), deque()), start=1):
        assert len(read) <= number + WINDOW


def test_second_replies_are_told_from_first_ones(run):
    """A duplicate, and an answer that comes after its request was given up."""
    grid = ScriptedGrid(good, {100: "c0", 101: "c1"})
    pull = grid.pull_messages
    grid.pull_messages = lambda ids: [r for r in pull(ids) for _ in range(2)]
    found = [(out.node, fresh) for out, _, fresh in stream(grid, outgoing(2), deque())]
    assert sorted(found) == [(100, False), (100, True), (101, False), (101, True)]
