"""A run whose devices release their profiles in groups: exchanges, ledger, who falls out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.serverapp import Grid

from fedsim.base import progress
from fedsim.errors import FedsimError
from fedsim.privacy.bounds import Bounds
from fedsim.privacy.secure_aggregation.groups import make_groups
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.protocol.limits import max_members, max_message_bytes
from fedsim.results.ledger_schema import ASKED_GROUP
from fedsim.scenario.schema import Scenario
from fedsim_server.messaging import Outgoing, stream
from fedsim_server.replies import NoAnswer, Refused, read_answer
from fedsim_server.roster import Roster
from fedsim_server.secure_aggregation import R, group_means


@dataclass(frozen=True)
class Aggregation:
    """Secure aggregation over the clients of a run."""

    grid: Grid
    scenario: Scenario
    roster: Roster
    bounds: Bounds
    """Public bounds of each value."""

    def recall_means(self) -> None:
        """Take up again what is known of clients whose group was asked before a run was cut off.

        A group is never asked twice: with and without one member its sums would give away that
        one's values.
        """
        roster = self.roster
        nodes = {client: node for node, client in roster.names.items()}
        for client, summary in self._asked().items():
            if client in nodes and client not in roster.ended:
                roster.summaries[client], roster.nodes[client] = summary, nodes[client]

    def gather_means(self, clients: Sequence[str]) -> None:
        """Learn the mean of each group of clients, as the profile of all its members.

        Members who fall out have ended, and so have all of a group that fails. Who was asked in an
        earlier run keeps the mean of that time, or has failed if none came of it.
        """
        roster, cohort = self.roster, self.scenario.privacy.cohort
        progress.current().stage("aggregate", len(clients))
        profiles = {client: roster.summaries[client] for client in clients}

        def keep(members: Sequence[str], mean: tuple[float, ...]) -> None:
            summaries = {c: replace(profiles[c], sensitivity=mean) for c in members}
            texts = {c: codec.to_text(summary) for c, summary in summaries.items()}
            roster.ledger.keep_together(ASKED_GROUP, texts, [roster.take_log(c) for c in members])
            if mean:
                roster.summaries |= {c: s for c, s in summaries.items() if c not in roster.ended}

        before = self._asked()
        for client in clients:
            if client not in before:
                continue
            if before[client].sensitivity:
                roster.summaries[client] = before[client]
                progress.current().advance()
            else:
                self._fail(
                    client,
                    "its group was asked for its sum before, and none came of it; nobody is asked"
                    " twice, so start a run in another folder to have it take part",
                )
        fresh = [client for client in clients if client not in before]
        groups = make_groups(fresh, cohort.size, self.scenario.seed)
        if not groups:
            for client in fresh:
                self._fail(
                    client, f"{len(fresh)} clients are left, too few for a group of {cohort.size}"
                )
        for mean in group_means(
            groups,
            self._ask,
            self._fail,
            lambda members: keep(members, ()),  # asked, and no mean yet
            cohort,
            self.scenario.quantization.sensitivity,
            self.bounds,
        ):
            keep(mean.clients, mean.values)
            for client in mean.clients:
                if client not in roster.ended:
                    progress.current().advance()

    def _asked(self) -> dict[str, m.Summary]:
        """Return the clients whose groups were asked for their sums, each with the mean if any."""
        kept = (codec.from_text(m.Summary, text) for text in self.roster.ledger.kept(ASKED_GROUP))
        return {summary.client: summary for summary in kept}

    def _fail(self, client: str, reason: str) -> None:
        if client not in self.roster.ended:
            self.roster.drop_client(client, "aggregate", f"client {client!r}: {reason}", "failed")

    def _ask(
        self,
        kind: str,
        messages: Mapping[str, m.Group],
        reply: type[R],
        problem_in: Callable[[str, R], str],
    ) -> dict[str, R]:
        """Send each client its message, once; return the sound answers.

        The other clients end here.
        """
        roster, found = self.roster, dict[str, R]()
        values, members = len(self.bounds.low), max_members(self.scenario)
        max_bytes = max_message_bytes(reply, values, members=members)
        first = (
            Outgoing(roster.nodes[client], kind, message) for client, message in messages.items()
        )
        for sent, answer, fresh in stream(self.grid, first, deque()):
            client = roster.client_key(sent.node)
            if not fresh:
                roster.log_message_event(sent, "second reply", "ignored")
                continue
            try:
                value = read_answer(reply, answer, f"client {client!r}", max_bytes)
                problem = problem_in(client, value)
                if problem:
                    raise Refused(f"client {client!r} sent {problem}")
            except NoAnswer as error:
                roster.fail_exchange(sent, str(error), "dropped")
            except Refused as error:
                roster.fail_exchange(sent, str(error), "quarantined")
            except FedsimError as error:
                roster.fail_exchange(sent, str(error), "failed")
            else:
                found[client] = value
                roster.log_message(client, sent, value)
        return found
