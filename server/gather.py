"""A study whose clients tell of themselves in groups: the exchanges, the ledger, who falls out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fedsim import messages as m
from fedsim.base import progress
from fedsim.errors import FedsimError
from fedsim.limits import most_bytes, most_members
from fedsim.scenario.privacy import COHORT
from server.cohort import R, group_means, make_groups
from server.exchange import Outgoing, stream
from server.replies import NoAnswer, Refused, read_answer

if TYPE_CHECKING:
    from server.study import Study


def recall_means(study: Study) -> None:
    """Take up again what is known of clients that a group was asked with before a run was cut off.

    A group is never asked twice: with and without one member its sums would tell that one's values.
    """
    nodes = {client: node for node, client in study.names.items()}
    for client, summary in _asked(study).items():
        if client in nodes and client not in study.ended:
            study.summaries[client], study.nodes[client] = summary, nodes[client]


def gather_means(study: Study, clients: Sequence[str]) -> None:
    """Learn the mean of each group of clients, as the sensitivities of all its members.

    Members who fall out have ended, and so have all of a group that fails. Who was asked in an
    earlier run keeps the mean of that time, or has failed if none came of it.
    """
    said, bounds = study.scenario.privacy.cohort, study.told.terms.bounds
    assert bounds is not None  # the release needs them
    progress.current().stage("aggregate", len(clients))
    profiles = {client: study.summaries[client] for client in clients}

    def fail(client: str, reason: str) -> None:
        if client not in study.ended:
            study.end(client, "aggregate", f"client {client!r}: {reason}", "failed")

    def ask(
        kind: str, messages: Mapping[str, m.Group], reply: type[R], odd: Callable[[str, R], str]
    ) -> dict[str, R]:
        return _ask(study, kind, messages, reply, odd)

    def keep(members: Sequence[str], sensitivity: tuple[float, ...]) -> None:
        told = {c: replace(profiles[c], sensitivity=sensitivity) for c in members}
        logs = [study.logs.pop(c) for c in members if c in study.logs]
        study.ledger.keep_together(COHORT, {c: m.to_text(s) for c, s in told.items()}, logs)
        if sensitivity:
            study.summaries |= {c: s for c, s in told.items() if c not in study.ended}

    before = _asked(study)
    for client in clients:
        if client not in before:
            continue
        if before[client].sensitivity:
            study.summaries[client] = before[client]
            progress.current().advance()
        else:
            fail(
                client,
                "its group was asked for its sum before, and none came of it; nobody is asked"
                " twice, so start a run in another folder to have it take part",
            )
    fresh = [client for client in clients if client not in before]
    groups = make_groups(fresh, said.size, study.scenario.seed)
    if not groups:
        for client in fresh:
            fail(client, f"{len(fresh)} clients are left, too few for a group of {said.size}")
    measure = study.scenario.quantization.sensitivity

    def asking(members: Sequence[str]) -> None:
        keep(members, ())  # asked, and no mean yet

    for mean in group_means(groups, ask, fail, asking, said, measure, bounds):
        keep(mean.clients, mean.sensitivity)
        for client in mean.clients:
            if client not in study.ended:
                progress.current().advance()


def _asked(study: Study) -> dict[str, m.Summary]:
    """Return the clients whose groups were asked for their sums, each with the mean if it came."""
    kept = (m.from_text(m.Summary, text) for text in study.ledger.kept(COHORT))
    return {summary.client: summary for summary in kept}


def _ask(
    study: Study,
    kind: str,
    messages: Mapping[str, m.Group],
    reply: type[R],
    odd: Callable[[str, R], str],
) -> dict[str, R]:
    """Send each client its message, once; return the sound answers. The other clients end here."""
    found: dict[str, R] = {}
    layers, members = len(study.planner.bank.layers), most_members(study.scenario)
    most = most_bytes(reply, layers, members=members)
    first = (Outgoing(study.nodes[client], kind, message) for client, message in messages.items())
    for sent, answer, fresh in stream(study.grid, first, deque()):
        client = study.client_of(sent.node)
        if not fresh:
            study.note_of(sent, "second reply", "ignored")
            continue
        try:
            value = read_answer(reply, answer, f"client {client!r}", most)
            problem = odd(client, value)
            if problem:
                raise Refused(f"client {client!r} sent {problem}")
        except NoAnswer as error:
            study.fail(sent, str(error), "dropped")
        except Refused as error:
            study.fail(sent, str(error), "quarantined")
        except FedsimError as error:
            study.fail(sent, str(error), "failed")
        else:
            found[client] = value
            study.log_message(client, sent, value)
    return found
