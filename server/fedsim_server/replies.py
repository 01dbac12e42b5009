"""Reads replies: which count as no answer, which are refused, and which quarantine the client."""

from __future__ import annotations

from typing import TypeVar

from flwr.app import Message

from fedsim.engine.flower_internals import LOST
from fedsim.errors import DeclinedError, FedsimError
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.protocol.limits import check_size, max_message_bytes
from fedsim.protocol.rules import broken_rule
from fedsim_server.known import known_of
from fedsim_server.messaging import Outgoing
from fedsim_server.planner import Planner
from fedsim_server.roster import Roster

M = TypeVar("M")
_MAX_REASON = 2_000  # characters
_REPLIES: dict[str, type[m.Summary | m.Receipt | m.Scores]] = {
    m.SENSE: m.Summary,
    m.PERSONALIZE: m.Receipt,
    m.EVALUATE: m.Scores,
}


class NoAnswer(FedsimError):
    """The message or its reply was lost: another attempt may succeed."""


class Refused(FedsimError):
    """A reply that cannot be read or does not fit the request: damaged, or from a broken client."""


class Untrusted(Refused):
    """A reply that another attempt will not correct: another version, or another client's key."""


def read_reply(
    sent: Outgoing, reply: Message, client: str, roster: Roster, planner: Planner
) -> m.Summary | m.Receipt | m.Scores:
    """Return a reply as its type; it keeps every rule of `fedsim.protocol.rules`.

    Args:
        sent: the request.
        reply: its reply.
        client: names the sender in errors.
        roster: knows which client each node plays, and what clients sent before.
        planner: knows the model and the scenario.

    Raises:
        NoAnswer: if the request or its reply was lost.
        Untrusted: for another version of the protocol, or another client's key.
        Refused: for a reply that cannot be read or breaks a rule.
        DeclinedError: if the client's privacy budget is spent.
        FedsimError: with the client's own reason, if it failed.
    """
    layers, corpus = len(planner.bank.layers), planner.scenario.corpus
    models = len(getattr(sent.message, "candidates", ())) + 1
    clips = corpus.test_clips if getattr(sent.message, "clip_counts", False) else 0
    kind = _REPLIES[sent.kind]
    max_bytes = max_message_bytes(kind, layers, models=models, clips=clips)
    answer = read_answer(kind, reply, f"client {client!r}", max_bytes)
    expected = roster.names.get(sent.node, answer.client)
    if answer.client != expected or roster.nodes.get(expected, sent.node) != sent.node:
        raise Untrusted(
            f"client {client!r} answered as {answer.client!r:.60}; check which app it runs"
        )
    known = known_of(sent, roster.summaries.get(answer.client), planner)
    problem = broken_rule(sent.message, answer, known)
    if not problem and isinstance(answer, m.Receipt):
        problem = _missing_layers(answer.blobs, planner)
    if problem:
        raise Refused(f"client {client!r} sent {problem}")
    return answer


def _missing_layers(names: bytes, planner: Planner) -> str:
    if planner.holds(names):
        return ""
    return "names of layers that it did not store"


def read_answer(kind: type[M], reply: Message, sender: str, max_bytes: int) -> M:
    """Return a reply of at most `max_bytes` as its type, not checked against the request.

    Raises as `read_reply` does.
    """
    if reply.has_error():
        reason = (reply.error.reason or "the client failed without a reason")[:_MAX_REASON]
        if reply.error.code == m.DECLINED:
            raise DeclinedError(reason)
        raise (NoAnswer if reply.error.code in LOST else FedsimError)(reason)
    try:
        check_size(kind, reply.content, max_bytes, sender)
        return codec.from_record(kind, reply.content, sender)
    except codec.VersionError as error:
        raise Untrusted(str(error)) from error
    except FedsimError as error:
        raise Refused(str(error)) from error
