"""Coordinates one run: exchanges messages with every client and writes the ledger.

A client is sensed, personalized and tested in one go: its worker still has its clips cached, and
the server keeps nothing of it afterwards. Where clients test each other's models (`tuned_on:
other`), every client completes a stage before the next stage begins; answers are kept in the
ledger, so that a resumed run does not ask again. Where clients release their profiles in groups
(`aggregation.py`), all are sensed before the first plan is made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from flwr.app import Message
from flwr.serverapp import Grid

from fedsim.base import progress
from fedsim.errors import DeclinedError, FedsimError, defect
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.results.records import Planned, Release, Workload
from fedsim.results.sqlite import ContentError
from fedsim.scenario.cells import all_cells, is_grouped, measure_of, needs_others
from fedsim.scenario.schema import Scenario
from fedsim_server.aggregation import Aggregation
from fedsim_server.messaging import PAUSE_S, WINDOW, Outgoing, stream
from fedsim_server.planner import Planner, Returned
from fedsim_server.replies import NoAnswer, Refused, Untrusted, read_reply
from fedsim_server.roster import Roster
from fedsim_server.rows import result_rows, tested_plans
from fedsim_server.sent_layers import SentLayers
from fedsim_server.summaries import SummaryReader


@dataclass
class Coordinator:
    """Takes the clients of one run through its stages."""

    grid: Grid
    scenario: Scenario
    planner: Planner
    roster: Roster
    reader: SummaryReader
    sent_layers: SentLayers | None = None
    """Adds layers to messages, where devices cannot read the server's bank; else None."""
    returned: dict[str, dict[str, Returned]] = field(default_factory=dict)
    """Client -> cell label -> what it returned of its model, where others test it."""
    window: int = WINDOW
    """The maximum number of messages in flight."""
    pause_s: float = PAUSE_S
    """Seconds to wait after a pull that returned nothing."""

    @property
    def _timed(self) -> bool:
        """Whether the virtual clock needs to know how much audio clients have."""
        return self.scenario.fleet is not None

    @property
    def _shared(self) -> bool:
        """Whether clients test each other's models."""
        return needs_others(self.scenario)

    @property
    def _grouped(self) -> bool:
        """Whether devices release their profiles in groups."""
        return is_grouped(self.scenario)

    def run(self) -> None:
        """Run every stage; return when every client has finished or failed."""
        roster = self.roster
        roster.ended = roster.ledger.finished()
        nodes = list(self.grid.get_node_ids())
        if self._shared:
            self._recall()
            fresh = [n for n in nodes if roster.names.get(n) not in roster.summaries]
            self._stage("sense", len(fresh), self._sense_requests(fresh))
            # A client can test another's model only once that one is calibrated.
            waiting = [c for c in roster.active() if c not in self.returned]
            self._stage("personalize", len(waiting), self._each(waiting, self._delivery))
            waiting = roster.active()
            self._stage("evaluate", len(waiting), self._each(waiting, self._evaluation))
        elif self._grouped:
            bounds = self.reader.params.required_bounds()
            aggregation = Aggregation(self.grid, self.scenario, roster, bounds)
            aggregation.recall_means()
            known = roster.ended | roster.summaries.keys()
            fresh = [n for n in nodes if roster.names.get(n) not in known]
            self._stage("sense", len(fresh), self._sense_requests(fresh))
            without = [c for c in roster.active() if not roster.summaries[c].sensitivity]
            aggregation.gather_means(without)
            waiting = roster.active()
            self._stage("personalize", len(waiting), self._each(waiting, self._delivery))
        else:
            fresh = [n for n in nodes if roster.names.get(n) not in roster.ended]
            self._stage("personalize", len(fresh), self._sense_requests(fresh))

    def _recall(self) -> None:
        """Restore what clients answered before the run was interrupted."""
        roster = self.roster
        nodes = {client: node for node, client in roster.names.items()}
        for text in roster.ledger.kept("sense"):
            summary = codec.from_text(m.Summary, text)
            if summary.client in nodes:  # else its node is unknown until it answers again
                roster.summaries[summary.client] = summary
                roster.nodes[summary.client] = nodes[summary.client]
        for text in roster.ledger.kept("personalize"):
            receipt = codec.from_text(m.Receipt, text)
            # Layers that a device rounded are gone with the bank of a run that ended: ask it again.
            if receipt.client in roster.summaries and self.planner.holds(receipt.blobs):
                self.returned[receipt.client] = self.planner.returned(receipt)

    def _stage(self, name: str, clients: int, first: Iterable[Outgoing]) -> None:
        """Send messages and handle their replies until none is in flight."""
        progress.current().stage(name, clients)
        follow_ups: deque[Outgoing] = deque()
        replies = stream(self.grid, first, follow_ups, window=self.window, pause_s=self.pause_s)
        for sent, reply, fresh in replies:
            if fresh:
                follow_ups.extend(self._handle(sent, reply))
            else:
                self.roster.log_message_event(sent, "second reply", "ignored")
        self.roster.write_logs()

    def _handle(self, sent: Outgoing, reply: Message) -> Iterable[Outgoing]:
        """Process a reply; return the messages that follow from it."""
        retries, roster = self.scenario.retries, self.roster
        client = roster.client_key(sent.node)
        try:
            answer = read_reply(sent, reply, client, roster, self.planner)
            if isinstance(sent.message, m.SenseRequest) and isinstance(answer, m.Summary):
                self.reader.check(sent.message, answer)
        except NoAnswer as error:
            if sent.attempt < retries.attempts:
                return [self._again(sent, "no answer", str(error))]
            text = f"{error} (attempt {sent.attempt} of {retries.attempts}, the last)"
            roster.fail_exchange(sent, text, "dropped")
        except Untrusted as error:
            roster.fail_exchange(sent, str(error), "quarantined")
        except Refused as error:
            strikes = sent.strikes + 1
            if strikes < retries.quarantine_after and sent.attempt < retries.attempts:
                return [replace(self._again(sent, "refused", str(error)), strikes=strikes)]
            roster.fail_exchange(sent, str(error), "quarantined")
        except DeclinedError as error:
            return self._declined(sent, str(error))
        except FedsimError as error:
            roster.fail_exchange(sent, str(error), "failed")
        else:
            return self._use(sent, answer)
        return []

    def _use(self, sent: Outgoing, answer: m.Summary | m.Receipt | m.Scores) -> Iterable[Outgoing]:
        """Continue with a client; whatever its answer breaks is the client's failure.

        What is wrong here and not with the client, such as a full disk, is a `FedsimError`.
        """
        try:
            return list(self._take(sent, answer))
        except FedsimError as error:
            if not isinstance(error, ContentError):
                raise
            cause = str(error)
        except Exception as error:
            cause = defect(error)
        reason = f"client {answer.client!r}: its answer cannot be used ({cause})"
        self.roster.fail_exchange(sent, reason, "failed")
        return []

    def _declined(self, sent: Outgoing, reason: str) -> Iterable[Outgoing]:
        """Plan from what a client released before its budget was spent, if it released anything."""
        summary = self.reader.summary(self.roster.client_key(sent.node))
        if summary is None:
            self.roster.fail_exchange(sent, reason, "declined")
            return []
        self.roster.log_message_event(sent, "declined", reason)
        return self._sensed(sent, summary)

    def _take(self, sent: Outgoing, answer: m.Summary | m.Receipt | m.Scores) -> Iterable[Outgoing]:
        """Continue with a client whose answer is valid."""
        client, roster = answer.client, self.roster
        if isinstance(answer, m.Summary):
            roster.names[sent.node], roster.nodes[client] = client, sent.node
            if client in roster.ended:  # it finished before; its Grid did not tell us its name
                progress.current().advance()
                return []
        self._log_releases(sent, answer)
        if isinstance(answer, m.Summary):
            assert isinstance(sent.message, m.SenseRequest)
            again = self.reader.take(sent.message, answer)
            if again is not None:
                return [Outgoing(sent.node, m.SENSE, again)]
            summary = self.reader.summary(client, answer)
            assert summary is not None
            return self._sensed(sent, summary)
        if isinstance(answer, m.Scores):
            self._finish(sent, answer)
            return []
        if self._shared:
            self._keep(sent, answer)
            self.returned[client] = self.planner.returned(answer)
            return []
        assert isinstance(sent.message, m.Delivery)  # a client tests what it was sent
        return [self._evaluation_of(client, sent.message.candidates)]

    def _sensed(self, sent: Outgoing, summary: m.Summary) -> Iterable[Outgoing]:
        """Continue with a client whose last release has arrived."""
        client = summary.client
        self.roster.summaries[client] = summary
        if self._shared:
            self._keep(sent, summary)
            return []
        if self._grouped:  # its group releases the sensitivities later
            progress.current().advance()
            return []
        make = self._delivery if all_cells(self.scenario) else self._evaluation
        return self._each([client], make)

    def _keep(self, sent: Outgoing, answer: m.Summary | m.Receipt) -> None:
        """Write an answer to the ledger, so that a resumed run need not ask again."""
        client, roster = answer.client, self.roster
        log = roster.take_log(client)
        roster.ledger.keep(client, m.STAGES[sent.kind], codec.to_text(answer), log)
        progress.current().advance()

    def _sense_requests(self, nodes: Iterable[int]) -> Iterator[Outgoing]:
        request = replace(self.reader.request(measure_of(self.scenario)), workload=self._timed)
        return (Outgoing(node, m.SENSE, request) for node in nodes)

    def _each(self, clients: Iterable[str], make: Callable[[str], Outgoing]) -> Iterator[Outgoing]:
        """Yield the message that `make` returns for each client; planning errors fail a client."""
        for client in clients:
            try:
                yield make(client)
            except FedsimError as error:
                self.roster.drop_client(client, "plan", str(error), "failed")
            except Exception as error:
                reason = f"client {client!r}: no model can be planned for it ({defect(error)})"
                self.roster.drop_client(client, "plan", reason, "failed")

    def _delivery(self, client: str) -> Outgoing:
        summary = self.roster.summaries[client]
        candidates = self.planner.of(summary).own(summary)
        if self._timed:
            planned = [Planned(client, c.name, c.bits, summary.language) for c in candidates]
            self.roster.log(client).planned += planned
        node = self.roster.nodes[client]
        delivery = m.Delivery(self._shared, candidates, self._layers(node, candidates))
        return Outgoing(node, m.PERSONALIZE, delivery)

    def _evaluation(self, client: str) -> Outgoing:
        roster = self.roster
        summary, clients = roster.summaries[client], sorted(roster.names.values())
        candidates, lost = self.planner.of(summary).tested(
            summary, roster.summaries, self.returned, clients
        )
        if lost:
            roster.ledger.fail_client(client, "plan", lost)
        return self._evaluation_of(client, candidates)

    def _evaluation_of(self, client: str, candidates: tuple[m.Candidate, ...]) -> Outgoing:
        node = self.roster.nodes[client]
        message = self.planner.evaluation(candidates, self._layers(node, candidates))
        return Outgoing(node, m.EVALUATE, message)

    def _layers(self, node: int, candidates: tuple[m.Candidate, ...]) -> tuple[bytes, ...]:
        sent = self.sent_layers
        return () if sent is None else sent.layers_to_send(node, candidates)

    def _log_releases(self, sent: Outgoing, answer: m.Summary | m.Receipt | m.Scores) -> None:
        client, stage, roster = answer.client, m.STAGES[sent.kind], self.roster
        roster.log_message(client, sent, answer)
        log = roster.log(client)
        if not isinstance(answer, m.Receipt) and answer.workload:
            log.workloads.append(Workload(client, stage, answer.clips, *answer.workload))
        if isinstance(answer, m.Receipt) and isinstance(sent.message, m.Delivery):
            planner = self.planner.of(roster.summaries[client])
            down = planner.fetched(sent.message.candidates, answer)
            log.releases += [
                Release(client, stage, "down", name, size) for name, size in down.items()
            ]

    def _finish(self, sent: Outgoing, scores: m.Scores) -> None:
        assert isinstance(sent.message, m.Evaluation)
        client, roster = scores.client, self.roster
        summary = roster.summaries[client] if self._shared else roster.summaries.pop(client)
        rows = result_rows(sent.message, scores, summary, self.planner.of(summary))
        plans = tested_plans(sent.message, scores, rows)
        sensed, payloads = self.reader.recorded(client, summary)
        log = roster.take_log(client)
        roster.ledger.finish_client(client, rows, plans, sensed, log, payloads)
        roster.ended.add(client)
        progress.current().advance()

    def _again(self, sent: Outgoing, event: str, reason: str) -> Outgoing:
        """Return the message for its next attempt; only the virtual clock waits before it."""
        pause = self.scenario.retries.pause_s(sent.attempt)
        self.roster.log_message_event(sent, event, f"{reason}; sent again after {pause:g} s")
        return replace(sent, attempt=sent.attempt + 1)
