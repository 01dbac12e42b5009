"""One study from the server's side: exchanges with every client, and a ledger.

A client is sensed, personalized and tested in one go: what its worker has of it is still at hand,
and nothing of it stays here afterwards. Where clients test each other's models (`tuned_on: other`),
each stage is finished for all before the next one begins; what they answered is kept in the ledger,
so that a run that is resumed does not ask again. Where they tell of themselves in groups
(`server/gather.py`), all are sensed before the first is planned for.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from flwr.app import Message
from flwr.serverapp import Grid

from fedsim import messages as m
from fedsim.base import progress
from fedsim.errors import DeclinedError, FedsimError
from fedsim.results.ledger import Event, Ledger, Log, Outcome, Planned, Release, Workload
from fedsim.scenario.schema import FULL_PRECISION, Scenario
from server.carrier import Carrier
from server.cells import all_cells, is_grouped, needs_others, needs_sensitivity
from server.exchange import Outgoing, stream
from server.gather import gather_means, recall_means
from server.plan import Planner
from server.replies import NoAnswer, Refused, Untrusted, read_reply
from server.rows import result_rows, tested_plans
from server.told import Told


@dataclass
class Study:
    """The state of one run. A client that fails is written down and left out of what follows."""

    grid: Grid
    scenario: Scenario
    planner: Planner
    ledger: Ledger
    told: Told
    names: dict[int, str]
    """Node id -> client key: of a Grid that knows them from the start, else as they answer."""
    nodes: dict[str, int] = field(default_factory=dict)
    """Client key -> node id, of the clients that answered."""
    summaries: dict[str, m.Summary] = field(default_factory=dict)
    """Of the clients under way, or of all where clients test each other's models."""
    ranges: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)
    """Client -> cell label -> activation ranges, where others test the client's models."""
    logs: defaultdict[str, Log] = field(default_factory=lambda: defaultdict(Log))
    """What is to be written of clients under way, with the next thing that they finish."""
    ended: set[str] = field(default_factory=set)
    """Clients that finished or failed."""
    carrier: Carrier | None = None
    """Where devices do not see the server's bank: what puts layers into their messages."""

    @property
    def _timed(self) -> bool:
        """Whether the virtual clock asks how much clients compute on."""
        return self.scenario.fleet is not None

    @property
    def shared(self) -> bool:
        """Whether clients test each other's models."""
        return needs_others(self.scenario)

    @property
    def grouped(self) -> bool:
        """Whether clients tell of their sensitivities in groups."""
        return is_grouped(self.scenario)

    def run(self) -> None:
        """Run every stage; return when each client is finished or failed."""
        self.ended = self.ledger.finished()
        nodes = list(self.grid.get_node_ids())
        if self.shared:
            self._recall()
            fresh = [n for n in nodes if self.names.get(n) not in self.summaries]
            self._stage("sense", len(fresh), self._sense_requests(fresh))
            # Nobody can test another's model before that one is calibrated.
            waiting = [c for c in self._active() if c not in self.ranges]
            self._stage("personalize", len(waiting), self._each(waiting, self._delivery))
            waiting = self._active()
            self._stage("evaluate", len(waiting), self._each(waiting, self._evaluation))
        elif self.grouped:
            recall_means(self)
            known = self.ended | self.summaries.keys()
            fresh = [n for n in nodes if self.names.get(n) not in known]
            self._stage("sense", len(fresh), self._sense_requests(fresh))
            gather_means(self, [c for c in self._active() if not self.summaries[c].sensitivity])
            waiting = self._active()
            self._stage("personalize", len(waiting), self._each(waiting, self._delivery))
        else:
            fresh = [n for n in nodes if self.names.get(n) not in self.ended]
            self._stage("personalize", len(fresh), self._sense_requests(fresh))

    def _active(self) -> list[str]:
        return sorted(self.summaries.keys() - self.ended)

    def _recall(self) -> None:
        """Take up again what clients had answered before the run was cut off."""
        nodes = {client: node for node, client in self.names.items()}
        for text in self.ledger.kept("sense"):
            summary = m.from_text(m.Summary, text)
            if summary.client in nodes:  # else it says again who it is
                self.summaries[summary.client] = summary
                self.nodes[summary.client] = nodes[summary.client]
        for text in self.ledger.kept("personalize"):
            receipt = m.from_text(m.Receipt, text)
            if receipt.client in self.summaries:
                self._keep_ranges(receipt)

    def _stage(self, name: str, clients: int, first: Iterable[Outgoing]) -> None:
        """Send, and handle what comes back, until nobody has anything under way."""
        progress.current().stage(name, clients)
        follow_ups: deque[Outgoing] = deque()
        for sent, reply, fresh in stream(self.grid, first, follow_ups):
            if fresh:
                follow_ups.extend(self._handle(sent, reply))
            else:
                self.note_of(sent, "second reply", "ignored")
        for client in list(self.logs):  # of second replies to clients that had ended
            self.ledger.write(self.logs.pop(client))

    def _handle(self, sent: Outgoing, reply: Message) -> Iterable[Outgoing]:
        """Take a reply in; return what is to be sent because of it."""
        retries = self.scenario.retries
        try:
            answer = read_reply(sent, reply, self.client_of(sent.node), self.names, self.planner)
            if isinstance(sent.message, m.SenseRequest) and isinstance(answer, m.Summary):
                self.told.check(sent.message, answer)
        except NoAnswer as error:
            if sent.attempt < retries.attempts:
                return [self._again(sent, "no answer", str(error))]
            text = f"{error} (attempt {sent.attempt} of {retries.attempts}, the last)"
            return self.fail(sent, text, "dropped")
        except Untrusted as error:
            return self.fail(sent, str(error), "quarantined")
        except Refused as error:
            strikes = sent.strikes + 1
            if strikes < retries.quarantine_after and sent.attempt < retries.attempts:
                return [replace(self._again(sent, "refused", str(error)), strikes=strikes)]
            return self.fail(sent, str(error), "quarantined")
        except DeclinedError as error:
            return self._declined(sent, str(error))
        except FedsimError as error:
            return self.fail(sent, str(error), "failed")
        return self._take(sent, answer)

    def _declined(self, sent: Outgoing, reason: str) -> Iterable[Outgoing]:
        """Plan from what a client had released before its budget was spent, if it had."""
        client = self.client_of(sent.node)
        summary = self.told.summary(client)
        if summary is None:
            return self.fail(sent, reason, "declined")
        self.note_of(sent, "declined", reason)
        return self._sensed(sent, summary)

    def _take(self, sent: Outgoing, answer: m.Summary | m.Receipt | m.Scores) -> Iterable[Outgoing]:
        """Go on with a client that answered as it should."""
        client = answer.client
        if isinstance(answer, m.Summary):
            self.names[sent.node], self.nodes[client] = client, sent.node
            if client in self.ended:  # of a Grid that tells no names: it had finished before
                progress.current().advance()
                return []
        self._log_releases(sent, answer)
        if isinstance(answer, m.Summary):
            assert isinstance(sent.message, m.SenseRequest)
            again = self.told.take(sent.message, answer)
            if again is not None:
                return [Outgoing(sent.node, m.SENSE, again)]
            summary = self.told.summary(client, answer)
            assert summary is not None
            return self._sensed(sent, summary)
        if isinstance(answer, m.Scores):
            self._finish(sent, answer)
            return []
        if self.shared:
            self._keep(sent, answer)
            self._keep_ranges(answer)
            return []
        assert isinstance(sent.message, m.Delivery)  # what it was sent is what it tests
        return [self._evaluation_of(client, sent.message.candidates)]

    def _sensed(self, sent: Outgoing, summary: m.Summary) -> Iterable[Outgoing]:
        """Go on with a client of which the server knows all that it will."""
        client = summary.client
        self.summaries[client] = summary
        if self.shared:
            self._keep(sent, summary)
            return []
        if self.grouped:  # that was its profile
            progress.current().advance()
            return []
        make = self._delivery if all_cells(self.scenario) else self._evaluation
        return self._each([client], make)

    def _keep(self, sent: Outgoing, answer: m.Summary | m.Receipt) -> None:
        """Write an answer, so that a run that is resumed need not ask again."""
        client = answer.client
        self.ledger.keep(client, m.STAGES[sent.kind], m.to_text(answer), self.logs.pop(client))
        progress.current().advance()

    def _sense_requests(self, nodes: Iterable[int]) -> Iterator[Outgoing]:
        measure = self.scenario.quantization.sensitivity if needs_sensitivity(self.scenario) else ""
        request = replace(self.told.request(measure), workload=self._timed)
        return (Outgoing(node, m.SENSE, request) for node in nodes)

    def _each(self, clients: Iterable[str], make: Callable[[str], Outgoing]) -> Iterator[Outgoing]:
        """Yield what `make` makes for each client; one that cannot be planned for has failed."""
        for client in clients:
            try:
                yield make(client)
            except FedsimError as error:
                self.end(client, "plan", str(error), "failed")

    def _delivery(self, client: str) -> Outgoing:
        candidates = self.planner.own(self.summaries[client])
        if self._timed:
            self.logs[client].planned += [Planned(client, c.name, c.bits) for c in candidates]
        node = self.nodes[client]
        delivery = m.Delivery(self.shared, candidates, self._layers(node, candidates))
        return Outgoing(node, m.PERSONALIZE, delivery)

    def _evaluation(self, client: str) -> Outgoing:
        candidates, lost = self.planner.tested(
            self.summaries[client], self.summaries, self.ranges, sorted(self.names.values())
        )
        if lost:
            self.ledger.fail_client(client, "plan", lost)
        return self._evaluation_of(client, candidates)

    def _evaluation_of(self, client: str, candidates: tuple[m.Candidate, ...]) -> Outgoing:
        full = any(method.allocation == FULL_PRECISION for method in self.scenario.methods)
        node, layers = self.nodes[client], self._layers(self.nodes[client], candidates)
        message = m.Evaluation(full, candidates, self.scenario.study, self._timed, layers)
        return Outgoing(node, m.EVALUATE, message)

    def _layers(self, node: int, candidates: tuple[m.Candidate, ...]) -> tuple[bytes, ...]:
        return () if self.carrier is None else self.carrier.lacking(node, candidates)

    def _keep_ranges(self, receipt: m.Receipt) -> None:
        width = 2 * len(self.planner.bank.layers)
        self.ranges[receipt.client] = {
            cell.label: receipt.ranges[i * width : (i + 1) * width]
            for i, cell in enumerate(all_cells(self.scenario))
        }

    def log_message(self, client: str, sent: Outgoing, answer: m.Message) -> None:
        """Have every field of a message and its answer written, with the client's next result."""
        stage, up = m.STAGES[sent.kind], m.field_bytes(answer)
        cost = self.told.epsilon if up.get("payload") else None
        log = self.logs[client].releases
        log += [
            Release(client, stage, "down", k, n)
            for k, n in m.field_bytes(sent.message).items()
            if k != "layers"  # they count as the bytes of the model's file, however they came
        ]
        log += [
            Release(client, stage, "up", k, n, cost if k == "payload" else None)
            for k, n in up.items()
        ]

    def _log_releases(self, sent: Outgoing, answer: m.Summary | m.Receipt | m.Scores) -> None:
        client, stage = answer.client, m.STAGES[sent.kind]
        self.log_message(client, sent, answer)
        log = self.logs[client].releases
        if not isinstance(answer, m.Receipt) and answer.workload:
            self.logs[client].workloads.append(
                Workload(client, stage, answer.clips, *answer.workload)
            )
        if isinstance(answer, m.Receipt) and isinstance(sent.message, m.Delivery):
            # The blobs of a model: as many bytes as its file, though workers read them from disk.
            sizes = zip(sent.message.candidates, answer.file_bytes, strict=True)
            log += [Release(client, stage, "down", f"model {c.name}", n) for c, n in sizes]

    def _finish(self, sent: Outgoing, scores: m.Scores) -> None:
        assert isinstance(sent.message, m.Evaluation)
        client = scores.client
        summary = self.summaries[client] if self.shared else self.summaries.pop(client)
        rows = result_rows(sent.message, scores, summary.budget_bytes, self.planner)
        plans = tested_plans(sent.message, scores, rows)
        sensed, payloads = self.told.recorded(client, summary)
        log = self.logs.pop(client)
        self.ledger.finish_client(client, rows, plans, sensed, log, payloads)
        self.ended.add(client)
        progress.current().advance()

    def note(self, client: str, stage: str, attempt: int, event: str, detail: str) -> None:
        """Have a line written about what happened on the way, with the client's next result."""
        self.logs[client].events.append(Event(client, stage, attempt, event, detail))

    def client_of(self, node: int) -> str:
        """Return the client that a node plays, as far as it is known."""
        return self.names.get(node, f"node {node}")

    def note_of(self, sent: Outgoing, event: str, detail: str) -> None:
        """Have a line written about what became of a message."""
        self.note(self.client_of(sent.node), m.STAGES[sent.kind], sent.attempt, event, detail)

    def _again(self, sent: Outgoing, event: str, reason: str) -> Outgoing:
        """Return the message once more. Waiting before it is a matter of the virtual clock."""
        pause = self.scenario.retries.pause_s(sent.attempt)
        self.note_of(sent, event, f"{reason}; sent again after {pause:g} s")
        return replace(sent, attempt=sent.attempt + 1)

    def fail(self, sent: Outgoing, reason: str, outcome: Outcome) -> Iterable[Outgoing]:
        """Write that a client could not go on after a message; return what is to be sent."""
        client, stage = self.client_of(sent.node), m.STAGES[sent.kind]
        if outcome != "failed":
            self.note_of(sent, outcome, reason)
        self.end(client, stage, reason, outcome)
        return []

    def end(self, client: str, stage: str, reason: str, outcome: Outcome) -> None:
        """Write that a client could not go on."""
        self.ledger.fail_client(client, stage, reason, outcome, self.logs.pop(client, None))
        self.ended.add(client)
        if not self.shared:
            self.summaries.pop(client, None)
        progress.current().fail()
        progress.current().advance()
