"""Secure aggregation in a run: exchanges with groups of clients, and what the ledger keeps."""

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
        """Restore the means of groups that were asked before the run was interrupted.

        No group is asked twice: two sums that differ in one member reveal that member's values.
        """
        roster = self.roster
        nodes = {client: node for node, client in roster.names.items()}
        for client, summary in self._asked().items():
            if client in nodes and client not in roster.ended:
                roster.summaries[client], roster.nodes[client] = summary, nodes[client]

    def gather_means(self, clients: Sequence[str]) -> None:
        """Collect the mean profile of each group, which becomes the profile of all its members.

        A member that drops out has ended, and so has every member of a group that fails. A client
        that was asked before an interruption keeps the mean of that time, or fails if there is
        none.
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
                    "its group was asked for a sum before the run was interrupted, and gave none;"
                    " no group is asked twice: start a run in another folder to include it",
                )
        fresh = [client for client in clients if client not in before]
        groups = make_groups(fresh, cohort.size, self.scenario.seed)
        if not groups:
            for client in fresh:
                self._fail(
                    client,
                    f"{len(fresh)} clients are left, fewer than a group of {cohort.size}; lower"
                    f" privacy.cohort.size or add clients",
                )
        for mean in group_means(
            groups,
            self._ask,
            self._fail,
            lambda members: keep(members, ()),  # recorded as asked, without a mean so far
            cohort,
            self.scenario.quantization.sensitivity,
            self.bounds,
        ):
            keep(mean.clients, mean.values)
            for client in mean.clients:
                if client not in roster.ended:
                    progress.current().advance()

    def _asked(self) -> dict[str, m.Summary]:
        """Return the summaries of clients whose groups were asked, with the mean if it is known."""
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
        """Send each client its message once; return the valid answers.

        Clients without a valid answer have ended.
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
