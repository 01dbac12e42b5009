"""Reads replies: which count as no answer, which are refused, and which quarantine the client."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from flwr.app import Message

from fedsim.engine.flower_internals import LOST
from fedsim.errors import DeclinedError, FedsimError
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.protocol.limits import check_size, max_message_bytes
from fedsim.quant.quantiles import QUANTILES
from fedsim_server.messaging import Outgoing
from fedsim_server.planner import Planner

M = TypeVar("M")
_MAX_REASON, _MAX_LANGUAGE = 2_000, 48  # characters
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
    sent: Outgoing, reply: Message, client: str, names: Mapping[int, str], planner: Planner
) -> m.Summary | m.Receipt | m.Scores:
    """Return a reply as its type, checked against the request.

    Args:
        sent: the request.
        reply: its reply.
        client: names the sender in errors.
        names: node id -> client key, as far as keys are known.
        planner: knows the model and the scenario.

    Raises:
        NoAnswer: if the request or its reply was lost.
        Untrusted: for another version of the protocol, or another client's key.
        Refused: for a reply that cannot be read or does not fit the request.
        DeclinedError: if the client's privacy budget is spent.
        FedsimError: with the client's own reason, if it failed.
    """
    layers, corpus = len(planner.bank.layers), planner.scenario.corpus
    models = len(getattr(sent.message, "candidates", ())) + 1
    clips = corpus.test_clips if getattr(sent.message, "clip_counts", False) else 0
    kind = _REPLIES[sent.kind]
    max_bytes = max_message_bytes(kind, layers, models=models, clips=clips)
    answer = read_answer(kind, reply, f"client {client!r}", max_bytes)
    if answer.client != names.get(sent.node, answer.client):
        raise Untrusted(
            f"client {client!r} answered as {answer.client!r:.60}; check which app it runs"
        )
    problem = _misfit(sent, answer, planner)
    if problem:
        raise Refused(f"client {client!r} sent {problem}")
    return answer


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


def _misfit(sent: Outgoing, answer: m.Summary | m.Receipt | m.Scores, planner: Planner) -> str:
    """Return what in a reply does not fit the request, or ""."""
    layers = len(planner.bank.layers)
    if isinstance(answer, m.Summary):
        assert isinstance(sent.message, m.SenseRequest)
        plain = planner.scenario.privacy.chosen.plain
        spoken = planner.scenario.model.vocabulary is not None
        return _problem_in_language(answer.language, spoken) or _problem_in_summary(
            sent.message, answer, layers, layers * plain, planner.sizes.depths
        )
    if isinstance(answer, m.Receipt):
        assert isinstance(sent.message, m.Delivery)
        models = len(sent.message.candidates)
        if len(answer.file_bytes) != models:
            return f"{len(answer.file_bytes)} sizes for {models} models"
        if len(answer.ranges) != 2 * layers * models * sent.message.return_models:
            return f"{len(answer.ranges)} range ends for {models} models of {layers} layers"
        rounded = sum(candidate.rounded_here for candidate in sent.message.candidates)
        names = layers * rounded * sent.message.return_models
        if len(answer.blobs) != names * m.HASH_BYTES:
            return f"{len(answer.blobs)} bytes of names for {names} layers"
        return ""
    assert isinstance(sent.message, m.Evaluation)
    return _problem_in_scores(sent.message, answer)


def _problem_in_summary(
    request: m.SenseRequest, answer: m.Summary, layers: int, expected: int, legal: tuple[int, ...]
) -> str:
    values, columns = answer.sensitivity, max(1, len(answer.depths))
    if not set(answer.depths) <= set(legal):
        return f"a table at the bit depths {answer.depths!r:.60}; the scenario allows {legal}"
    if len(values) != (expected * columns if request.measure else 0):
        return f"a layer profile of {len(values)} values for a model of {layers} layers"
    bad = next((i for i, v in enumerate(values) if not math.isfinite(v)), None)
    if bad is not None:
        return f"{values[bad]} as the sensitivity of layer {bad // columns}, which must be finite"
    if len(answer.quantiles) != layers * len(QUANTILES) * request.quantiles:
        return f"{len(answer.quantiles)} quantiles for {layers} layers"
    if _is_wrong_workload(answer.workload, 2 * request.workload):
        return f"a workload of {answer.workload!r:.60}"
    if answer.budget_bytes < 1:
        return f"a budget of {answer.budget_bytes} bytes"
    if not answer.bit_depths or not set(answer.bit_depths) <= set(legal):
        return f"the bit depths {answer.bit_depths!r:.60}, where the scenario allows {legal}"
    return ""


def _problem_in_language(language: str, requested: bool) -> str:
    if len(language) > _MAX_LANGUAGE or not language.isprintable():
        return f"{language!r:.60} as its language"
    return "" if requested or not language else "its language, which was not requested"


def _is_wrong_workload(values: tuple[float, ...], expected: int) -> bool:
    return len(values) != expected or any(not math.isfinite(v) or v < 0 for v in values)


def _problem_in_scores(request: m.Evaluation, answer: m.Scores) -> str:
    models = len(request.candidates) + request.full_precision
    counts = (answer.errors, answer.words, answer.char_errors, answer.chars)
    sums = (answer.correct,) if answer.correct else counts
    for values in (answer.file_bytes, answer.low, answer.high, *sums):
        if len(values) != models:
            return f"scores that do not fit the request, {len(values)} values for {models} models"
    loops = (answer.looped, answer.looped_errors, answer.looped_words)
    if len({len(values) for values in loops}) > 1 or len(answer.looped) not in (0, models):
        return f"scores that do not fit the request, {len(answer.looped)} counts of loops"
    clips = models * answer.clips * request.clip_counts
    if len(answer.clip_wrong) != clips or len(answer.clip_of) != clips:
        return "scores that do not fit the request, with counts of some clips missing"
    if _is_wrong_workload(answer.workload, 1 * request.workload):
        return f"a workload of {answer.workload!r:.60}"
    return ""
