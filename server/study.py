"""One study from the server's side: three exchanges with every client, and a ledger."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from fedsim import messages as m
from fedsim import progress
from fedsim.errors import FedsimError
from fedsim.quant.allocation import mean_bits
from fedsim.results.ledger import Ledger, Release
from fedsim.results.rows import Row
from fedsim.scenario.schema import FULL_PRECISION, Scenario
from server.exchange import Outgoing, stream
from server.plan import NOBODY, Planner, all_cells, needs_others, needs_sensitivity

T = TypeVar("T", m.Summary, m.Receipt, m.Scores)
FULL_BITS = 32.0


@dataclass
class Study:
    """The state of one run. A client that fails is written down and left out of what follows."""

    grid: Grid
    scenario: Scenario
    planner: Planner
    ledger: Ledger
    summaries: dict[str, m.Summary] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    """Client key -> node id, of the clients that answered."""
    names: dict[int, str] = field(default_factory=dict)
    """Node id -> client key: of a Grid that knows them from the start, else as they answer."""
    ranges: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)
    """Client -> cell label -> activation ranges, where others test the client's models."""
    releases: dict[str, list[Release]] = field(default_factory=dict)
    """What clients under way have sent and been sent; written when they finish or fail."""

    def run(self) -> None:
        """Run every stage; return when each client is finished or failed."""
        shared = needs_others(self.scenario)
        node_ids = list(self.grid.get_node_ids())
        shown = progress.current()
        stages = ("sense", "personalize", "evaluate") if shared else ("sense", "evaluate")
        shown.start(len(node_ids), stages)
        shown.stage("sense", len(node_ids))
        self._sense(node_ids)
        if shared:
            # Nobody can test another's model before that one is calibrated: finish the stage first.
            shown.stage("personalize", len(self.summaries))
            self._personalize_all()
        shown.stage("evaluate", len(self.summaries))
        # Without sharing, a client is tested as soon as it is personalized: its clips are at hand.
        self._evaluate_all(deliver=not shared)

    def _sense(self, node_ids: list[int]) -> None:
        measure = self.scenario.quantization.sensitivity if needs_sensitivity(self.scenario) else ""
        queue = deque(Outgoing(n, m.SENSE, m.SenseRequest(measure)) for n in node_ids)
        for sent, reply in stream(self.grid, queue):
            summary = self._read(m.Summary, "sense", sent, reply)
            if summary is not None:
                self.summaries[summary.client] = summary
                self.nodes[summary.client] = sent.node
                self.names[sent.node] = summary.client
            progress.current().advance()

    def _personalize_all(self) -> None:
        queue = self._each(self._delivery)
        for sent, reply in stream(self.grid, queue):
            receipt = self._read(m.Receipt, "personalize", sent, reply)
            if receipt is not None:
                self._keep_ranges(receipt)
            progress.current().advance()

    def _evaluate_all(self, *, deliver: bool) -> None:
        deliver = deliver and bool(all_cells(self.scenario))
        queue = self._each(self._delivery if deliver else self._evaluation)
        for sent, reply in stream(self.grid, queue):
            if sent.kind == m.PERSONALIZE:
                receipt = self._read(m.Receipt, "personalize", sent, reply)
                if receipt is not None:
                    self._try(receipt.client, self._evaluation, queue)
                failed = receipt is None or receipt.client not in self.summaries
                progress.current().advance(int(failed))
                continue
            scores = self._read(m.Scores, "evaluate", sent, reply)
            if scores is not None:
                assert isinstance(sent.message, m.Evaluation)
                self._finish(sent.message, scores)
            progress.current().advance()

    def _each(self, make: Callable[[str], Outgoing]) -> deque[Outgoing]:
        """Return what `make` makes for every client still in the study."""
        queue: deque[Outgoing] = deque()
        for client in sorted(self.summaries):
            if not self._try(client, make, queue):
                progress.current().advance()
        return queue

    def _try(self, client: str, make: Callable[[str], Outgoing], queue: deque[Outgoing]) -> bool:
        """Append what `make` makes for a client; a client that cannot be planned for has failed."""
        try:
            queue.append(make(client))
        except FedsimError as error:
            self._fail(client, "plan", str(error))
            return False
        return True

    def _delivery(self, client: str) -> Outgoing:
        candidates = self.planner.own(self.summaries[client])
        message = m.Delivery(needs_others(self.scenario), candidates)
        return Outgoing(self.nodes[client], m.PERSONALIZE, message)

    def _evaluation(self, client: str) -> Outgoing:
        candidates, lost = self.planner.tested(
            self.summaries[client], self.summaries, self.ranges, sorted(self.nodes)
        )
        for sentence in lost:
            self.ledger.fail_client(client, "plan", sentence)
        full = any(method.allocation == FULL_PRECISION for method in self.scenario.methods)
        message = m.Evaluation(full, candidates)
        return Outgoing(self.nodes[client], m.EVALUATE, message)

    def _keep_ranges(self, receipt: m.Receipt) -> None:
        cells = all_cells(self.scenario)
        width = len(receipt.ranges) // max(1, len(cells))
        self.ranges[receipt.client] = {
            cell.label: receipt.ranges[i * width : (i + 1) * width] for i, cell in enumerate(cells)
        }

    def _read(self, kind: type[T], stage: str, sent: Outgoing, reply: Message) -> T | None:
        """Return a reply as its type; a client that sent an error or nonsense has failed."""
        client = self.names.get(sent.node, f"node {sent.node}")
        if reply.has_error():
            self._fail(client, stage, reply.error.reason or "the client failed without a reason")
            return None
        try:
            message = m.from_record(kind, reply.content, f"client {client!r}")
        except FedsimError as error:
            self._fail(client, stage, str(error))
            return None
        up = [Release(message.client, stage, "up", k, n) for k, n in m.field_bytes(message).items()]
        down = [
            Release(message.client, stage, "down", k, n)
            for k, n in m.field_bytes(sent.message).items()
        ]
        self.releases.setdefault(message.client, []).extend(down + up)
        return message

    def _fail(self, client: str, stage: str, reason: str) -> None:
        self.summaries.pop(client, None)
        self.ledger.releases(self.releases.pop(client, []))
        self.ledger.fail_client(client, stage, reason)
        progress.current().fail()

    def _finish(self, sent: m.Evaluation, scores: m.Scores) -> None:
        client = scores.client
        try:
            rows = result_rows(sent, scores, self.summaries[client].budget_bytes, self.planner)
        except (IndexError, KeyError) as error:
            self._fail(
                client, "evaluate", f"client {client!r} sent scores that do not fit: {error}"
            )
            return
        self.ledger.releases(self.releases.pop(client, []))
        self.ledger.finish_client(client, rows)


def result_rows(sent: m.Evaluation, scores: m.Scores, budget: int, planner: Planner) -> list[Row]:
    """Return one row per model that a client tested."""
    n_weights = [layer.n_weights for layer in planner.bank.layers]
    tested: list[m.Candidate | None] = [None] if sent.full_precision else []
    rows = []
    for index, candidate in enumerate([*tested, *sent.candidates]):
        classifier = bool(scores.correct)
        row = Row(
            client=scores.client,
            method=FULL_PRECISION if candidate is None else candidate.name,
            allocation=FULL_PRECISION if candidate is None else candidate.name.split("/")[0],
            calibration=NOBODY if candidate is None else candidate.calibration,
            tuned_on=NOBODY if candidate is None else candidate.tuned_on,
            budget_bytes=budget,
            file_bytes=scores.file_bytes[index],
            mean_bits=FULL_BITS if candidate is None else mean_bits(candidate.bits, n_weights),
            clips=scores.clips,
            errors=None if classifier else scores.errors[index],
            words=None if classifier else scores.words[index],
            wer=None if classifier else _rate(scores.errors[index], scores.words[index]),
            char_errors=None if classifier else scores.char_errors[index],
            chars=None if classifier else scores.chars[index],
            cer=None if classifier else _rate(scores.char_errors[index], scores.chars[index]),
            correct=scores.correct[index] if classifier else None,
            accuracy=_rate(scores.correct[index], scores.clips) if classifier else None,
            plan_sha256="" if candidate is None else _plan_hash(candidate.bits),
        )
        rows.append(row)
    return rows


def _rate(count: int, total: int) -> float | None:
    return count / total if total else None


def _plan_hash(bits: tuple[int, ...]) -> str:
    return hashlib.sha256(bytes(bits)).hexdigest()
