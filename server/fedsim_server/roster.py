"""The clients of a run: their nodes and summaries, who has ended, and pending ledger entries."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from fedsim.base import progress
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.results.ledger import Ledger
from fedsim.results.records import Event, Log, Outcome, Release
from fedsim_server.messaging import Outgoing


@dataclass
class Roster:
    """The clients of one run, as the server knows them. A client that fails is not asked again."""

    ledger: Ledger
    names: dict[int, str]
    """Node id -> client key: known from the start where the Grid names nodes, else once they
    answer."""
    keeps_summaries: bool = False
    """Whether to keep the summary of a client that ended, because others test its models."""
    epsilon: float | None = None
    """Privacy cost of the payload of one summary; None where no noise is added."""
    nodes: dict[str, int] = field(default_factory=dict)
    """Client key -> node id, of the clients that answered."""
    summaries: dict[str, m.Summary] = field(default_factory=dict)
    """Client key -> summary, of the clients that have not ended, or of all."""
    ended: set[str] = field(default_factory=set)
    """Clients that finished or failed."""
    _logs: defaultdict[str, Log] = field(default_factory=lambda: defaultdict(Log))
    """Client key -> entries to write together with the client's next result."""

    def client_key(self, node: int) -> str:
        """Return the key of the client that a node plays, or "node <id>" while it is unknown."""
        return self.names.get(node, f"node {node}")

    def active(self) -> list[str]:
        """Return the clients that have a summary and have not ended, sorted."""
        return sorted(self.summaries.keys() - self.ended)

    def log(self, client: str) -> Log:
        """Return a client's pending entries, to add to them."""
        return self._logs[client]

    def take_log(self, client: str) -> Log:
        """Remove and return a client's pending entries."""
        return self._logs.pop(client, Log())

    def write_logs(self) -> None:
        """Write pending entries of clients that have ended already: second replies."""
        for client in list(self._logs):
            self.ledger.write(self._logs.pop(client))

    def log_event(self, client: str, stage: str, attempt: int, event: str, detail: str) -> None:
        """Log an event, to be written with the client's next result."""
        self._logs[client].events.append(Event(client, stage, attempt, event, detail))

    def log_message_event(self, sent: Outgoing, event: str, detail: str) -> None:
        """Log an event that concerns one message."""
        self.log_event(self.client_key(sent.node), m.STAGES[sent.kind], sent.attempt, event, detail)

    def log_message(self, client: str, sent: Outgoing, answer: m.Message) -> None:
        """Log every field of a message and its answer, to be written with the next result."""
        stage, up = m.STAGES[sent.kind], codec.field_bytes(answer)
        cost = self.epsilon if up.get("payload") else None
        releases = self._logs[client].releases
        releases += [
            Release(client, stage, "down", name, size)
            for name, size in codec.field_bytes(sent.message).items()
            if name != "layers"  # counted as bytes of the model's file, in a message or not
        ]
        releases += [
            Release(client, stage, "up", name, size, cost if name == "payload" else None)
            for name, size in up.items()
        ]

    def fail_exchange(self, sent: Outgoing, reason: str, outcome: Outcome) -> None:
        """Write that an exchange with a client failed, and drop the client."""
        if outcome != "failed":
            self.log_message_event(sent, outcome, reason)
        self.drop_client(self.client_key(sent.node), m.STAGES[sent.kind], reason, outcome)

    def drop_client(self, client: str, stage: str, reason: str, outcome: Outcome) -> None:
        """Write that a client failed; it is not asked again."""
        self.ledger.fail_client(client, stage, reason, outcome, self._logs.pop(client, None))
        self.ended.add(client)
        if not self.keeps_summaries:
            self.summaries.pop(client, None)
        progress.current().fail()
        progress.current().advance()
