"""Devices that lie: each is quarantined by its name, and nobody else is worse off."""

from __future__ import annotations

from collections import Counter
from functools import cache

import paper
import pytest
import toys
from answers import BREAKS, Exchange
from flwr.app import Message
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scripted import LAYERS, OWN, SHARED, good, run_scripted

from fedsim.engine.flower_internals import server_identity
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.protocol.known import Known
from fedsim.protocol.rules import RULES
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario

KINDS = {
    m.SENSE: (m.SenseRequest, m.Summary),
    m.PERSONALIZE: (m.Delivery, m.Receipt),
    m.EVALUATE: (m.Evaluation, m.Scores),
}
LIES = [(kind, rule.check.__name__) for kind, (_, a) in KINDS.items() for rule in RULES[a]]
ELSEWHERE = {"correct", "looped", "rare", "clip_values", "clip_sums"}
"""Rules of what the scripted clients do not send: they recognize words, one at a time."""
KNOWN = Known(len(LAYERS), (2, 4, 8), 16)
own = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def lie(draw, kind, check, record, answer, known=KNOWN):
    """The answer with one rule broken; None if it has nothing that can be broken so."""
    request = codec.from_record(KINDS[kind][0], record, "the server")
    exchange = BREAKS[check](draw, Exchange(request, answer, known))
    changed = exchange is not None and repr(exchange.answer) != repr(answer)
    return exchange.answer if changed else None


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """Methods -> the rows of three clients that do not lie."""
    with server_identity():
        return {id(m): run_scripted(tmp_path_factory.mktemp("a"), m)[1] for m in (OWN, SHARED)}


@pytest.mark.parametrize("methods", [OWN, SHARED], ids=["own", "shared"])
@pytest.mark.parametrize("told", [x for x in LIES if x[1] not in ELSEWHERE], ids="-".join)
@settings(own, max_examples=3)
@given(data=st.data())
def test_one_liar_among_three(tmp_path_factory, honest, methods, told, data):
    kind, check = told
    done = []

    def answer(client, what, record):
        honest = good(client, what, record)
        if (client, what) != ("bob", kind):
            return honest
        false = lie(data.draw, kind, check, record, honest)
        done.append(false is not None)
        return honest if false is None else false

    home = tmp_path_factory.mktemp("liar")
    with server_identity():
        _, rows, failures, _ = run_scripted(home, methods, answer)
    assume(any(done))
    (caught,) = [f for f in failures if f.outcome != "failed"]
    assert (caught.client, caught.outcome) == ("bob", "quarantined")
    assert caught.reason.startswith("client 'bob' sent ")
    assert len(caught.reason) < 300
    # A model that was to be tuned on the liar's clips is lost, and nothing else.
    lost = set() if kind == m.EVALUATE else {"bob"}
    expected = [r for r in honest[id(methods)] if r.client != "bob" and r.tuned_on not in lost]
    assert rows == expected


def lying(draw, told, known):
    """A mod with which each client of `told` breaks one rule: client -> (message type, check)."""
    heard = Counter()

    def mod(message, context, call_next):
        reply = call_next(message, context)
        client, kind = context.node_config["client"], message.metadata.message_type
        if told.get(client, ("", ""))[0] != kind or reply.has_error():
            return reply
        honest = codec.from_record(KINDS[kind][1], reply.content, client)
        false = lie(draw, kind, told[client][1], message.content, honest, known)
        if false is None:
            return reply
        heard[client] += 1
        return Message(codec.to_record(false), reply_to=message)

    return mod, heard


@pytest.fixture(scope="module")
def crowd(tmp_path_factory, model_folder):
    """f(n) -> a study of n clients, each with counts of its clips and of rare words."""

    @cache
    def make(count):
        home = tmp_path_factory.mktemp("crowd")
        speakers = [f"speaker {i:02d}" for i in range(count)]
        toys.write_corpus(home / "clips", speakers, each=2)
        file = toys.write_scenario(
            home / "crowd.yaml",
            model={"id": str(model_folder("ctc-group")), "batch_size": 4},
            corpus={"path": "clips", "group_by": "speaker", "tuning_clips": 1, "test_clips": 1},
            clients={"budget_mb": 0.0334},
            quantization=paper.QUANTIZATION,
            methods=["fp32", {"allocation": "myqasr", "tuned_on": ["own"]}],
            study=True,
            rare_beyond=300,
        )
        return file, speakers

    return make


def check_crowd(crowd, engine, home, data):
    """Half of a crowd lies."""
    file, speakers = crowd
    scenario = load_scenario(file, ["engine.kind=own"])
    engine.mods = ()
    honest = run_scenario(scenario, home / "honest").rows
    half = len(speakers) // 2
    liars = data.draw(
        st.lists(st.sampled_from(speakers), min_size=half, max_size=half, unique=True)
    )
    told = {client: data.draw(st.sampled_from(LIES)) for client in liars}
    mod, heard = lying(data.draw, told, Known(1, scenario.clients.bit_depths, 1))
    engine.mods = (mod,)
    result = run_scenario(scenario, home / "lies")
    caught = {failure.client: failure for failure in result.failures}
    assert caught.keys() == heard.keys()
    assert {failure.outcome for failure in caught.values()} <= {"quarantined"}
    assert all(f.reason.startswith(f"client {name!r} sent ") for name, f in caught.items())
    assert result.rows == [row for row in honest if row.client not in caught]
    return len(heard)


@settings(own, max_examples=1)
@given(data=st.data())
def test_ten_liars_among_twenty_on_the_real_server(crowd, engine, tmp_path_factory, data):
    check_crowd(crowd(20), engine, tmp_path_factory.mktemp("run"), data)


@pytest.mark.slow
@settings(own, max_examples=130)
@given(data=st.data())
def test_two_thousand_liars(crowd, engine, tmp_path_factory, data):
    check_crowd(crowd(40), engine, tmp_path_factory.mktemp("run"), data)
