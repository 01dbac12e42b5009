"""One study from the server's side: three exchanges with every client, and a ledger."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from fedsim import messages as m
from fedsim import progress
from fedsim.errors import FedsimError
from fedsim.quant.allocation import mean_bits
from fedsim.results.ledger import Ledger, Release
from fedsim.results.rows import Plan, Row, Sensed
from fedsim.scenario.schema import FULL_PRECISION, Scenario
from server.exchange import Outgoing, stream
from server.plan import NOBODY, Planner, all_cells, needs_others, needs_sensitivity

T = TypeVar("T", m.Summary, m.Receipt, m.Scores)
FULL_BITS = 32.0


def stages(scenario: Scenario) -> tuple[str, ...]:
    """Return the stages that a run of the scenario shows."""
    return ("sense", "personalize", "evaluate") if needs_others(scenario) else ("sense", "evaluate")


@dataclass
class Study:
    """The state of one run. A client that fails is written down and left out of what follows."""

    grid: Grid
    scenario: Scenario
    planner: Planner
    ledger: Ledger
    names: dict[int, str]
    """Node id -> client key: of a Grid that knows them from the start, else as they answer."""
    nodes: dict[str, int] = field(default_factory=dict)
    """Client key -> node id, of the clients that answered."""
    summaries: dict[str, m.Summary] = field(default_factory=dict)
    ranges: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)
    """Client -> cell label -> activation ranges, where others test the client's models."""
    releases: dict[str, list[Release]] = field(default_factory=dict)
    """What clients under way have sent and been sent; written when they finish or fail."""
    failed: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Run every stage; return when each client is finished or failed."""
        node_ids = list(self.grid.get_node_ids())
        shared = needs_others(self.scenario)
        shown = progress.current()
        shown.stage("sense", len(node_ids))
        self._sense(node_ids)
        if shared:
            # Nobody can test another's model before that one is calibrated: finish the stage first.
            shown.stage("personalize", len(self._active()))
            self._personalize_all()
        shown.stage("evaluate", len(self._active()))
        # Without sharing, a client is tested as soon as it is personalized: its clips are at hand.
        self._evaluate_all(deliver=not shared and bool(all_cells(self.scenario)))

    def _active(self) -> list[str]:
        return sorted(self.summaries.keys() - self.failed)

    def _sense(self, node_ids: list[int]) -> None:
        measure = self.scenario.quantization.sensitivity if needs_sensitivity(self.scenario) else ""
        request = m.SenseRequest(measure, self.scenario.study)
        messages = (Outgoing(n, m.SENSE, request) for n in node_ids)
        for sent, reply in stream(self.grid, messages, deque()):
            summary = self._read(m.Summary, "sense", sent, reply)
            if summary is not None:
                self.summaries[summary.client] = summary
                self.nodes[summary.client] = sent.node
                self.names[sent.node] = summary.client
            progress.current().advance()

    def _personalize_all(self) -> None:
        for sent, reply in stream(self.grid, self._each(self._delivery), deque()):
            receipt = self._read(m.Receipt, "personalize", sent, reply)
            if receipt is not None:
                self._keep_ranges(receipt)
            progress.current().advance()

    def _evaluate_all(self, *, deliver: bool) -> None:
        follow_ups: deque[Outgoing] = deque()
        first = self._each(self._delivery if deliver else self._evaluation)
        for sent, reply in stream(self.grid, first, follow_ups):
            if isinstance(sent.message, m.Evaluation):
                scores = self._read(m.Scores, "evaluate", sent, reply)
                if scores is not None:
                    self._finish(sent.message, scores)
                progress.current().advance()
                continue
            receipt = self._read(m.Receipt, "personalize", sent, reply)
            if receipt is None:
                progress.current().advance()
            else:
                follow_ups.extend(self._planned(receipt.client, self._evaluation))

    def _each(self, make: Callable[[str], Outgoing]) -> Iterator[Outgoing]:
        """Yield what `make` makes for every client still in the study, one when there is room."""
        for client in self._active():
            yield from self._planned(client, make)

    def _planned(self, client: str, make: Callable[[str], Outgoing]) -> Iterator[Outgoing]:
        """Yield what `make` makes for a client; one that cannot be planned for has failed."""
        try:
            yield make(client)
        except FedsimError as error:
            self._fail(client, "plan", str(error))
            progress.current().advance()

    def _delivery(self, client: str) -> Outgoing:
        candidates = self.planner.own(self.summaries[client])
        message = m.Delivery(needs_others(self.scenario), candidates)
        return Outgoing(self.nodes[client], m.PERSONALIZE, message)

    def _evaluation(self, client: str) -> Outgoing:
        candidates, lost = self.planner.tested(
            self.summaries[client], self.summaries, self.ranges, sorted(self.names.values())
        )
        if lost:
            self.ledger.fail_client(client, "plan", lost)
        full = any(method.allocation == FULL_PRECISION for method in self.scenario.methods)
        message = m.Evaluation(full, candidates, self.scenario.study)
        return Outgoing(self.nodes[client], m.EVALUATE, message)

    def _keep_ranges(self, receipt: m.Receipt) -> None:
        cells = all_cells(self.scenario)
        width = 2 * len(self.planner.bank.layers)
        if len(receipt.ranges) != width * len(cells):
            reason = f"client {receipt.client!r} sent {len(receipt.ranges)} numbers for the ranges"
            expected = f"{len(cells)} models of {width // 2} layers"
            self._fail(receipt.client, "personalize", f"{reason} of {expected}")
            return
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
        if message.client != self.names.get(sent.node, message.client):
            reason = f"client {client!r} answered in the name of {message.client!r:.60}"
            self._fail(client, stage, f"{reason}; look at the app that it runs")
            return None
        down, up = m.field_bytes(sent.message), m.field_bytes(message)
        log = self.releases.setdefault(message.client, [])
        log += [Release(message.client, stage, "down", k, n) for k, n in down.items()]
        log += [Release(message.client, stage, "up", k, n) for k, n in up.items()]
        if isinstance(message, m.Receipt) and isinstance(sent.message, m.Delivery):
            # The blobs of a model: as many bytes as its file, though workers read them from disk.
            sizes = zip(sent.message.candidates, message.file_bytes, strict=False)
            log += [Release(message.client, stage, "down", f"model {c.name}", n) for c, n in sizes]
        return message

    def _fail(self, client: str, stage: str, reason: str) -> None:
        self.failed.add(client)
        self.ledger.releases(self.releases.pop(client, []))
        self.ledger.fail_client(client, stage, reason)
        progress.current().fail()

    def _finish(self, sent: m.Evaluation, scores: m.Scores) -> None:
        client = scores.client
        try:
            rows = result_rows(sent, scores, self.summaries[client].budget_bytes, self.planner)
            if len(scores.clip_wrong) != sent.clip_counts * scores.clips * len(rows):
                raise IndexError("counts of some clips are missing")
        except (IndexError, KeyError) as error:
            reason = f"client {client!r} sent scores that do not fit the request: {error}"
            self._fail(client, "evaluate", reason)
            return
        self.ledger.releases(self.releases.pop(client, []))
        summary = self.summaries[client]
        sensed = Sensed(client, summary.sensitivity, summary.quantiles)
        self.ledger.finish_client(client, rows, _plans(sent, scores, rows), sensed)


def result_rows(sent: m.Evaluation, scores: m.Scores, budget: int, planner: Planner) -> list[Row]:
    """Return one row per model that a client tested."""
    n_weights = [layer.n_weights for layer in planner.bank.layers]
    allocations = {cell.label: cell.allocation for cell in all_cells(planner.scenario)}
    full: list[m.Candidate | None] = [None] if sent.full_precision else []
    rows = []
    for index, tested in enumerate([*full, *sent.candidates]):
        made: dict[str, Any] = (
            {
                "method": FULL_PRECISION,
                "allocation": FULL_PRECISION,
                "calibration": NOBODY,
                "tuned_on": NOBODY,
                "mean_bits": FULL_BITS,
                "plan_sha256": "",
            }
            if tested is None
            else {
                "method": tested.name,
                "allocation": allocations[tested.name],
                "calibration": tested.calibration,
                "tuned_on": tested.tuned_on,
                "mean_bits": mean_bits(tested.bits, n_weights),
                "plan_sha256": hashlib.sha256(bytes(tested.bits)).hexdigest(),
            }
        )
        rows.append(
            Row(
                client=scores.client,
                budget_bytes=budget,
                file_bytes=scores.file_bytes[index],
                clips=scores.clips,
                **made,
                **_counts(scores, index),
            )
        )
    return rows


def _plans(sent: m.Evaluation, scores: m.Scores, rows: list[Row]) -> list[Plan]:
    """Return the plan of each row; `rows` are in the order tested."""
    bits = [()] * sent.full_precision + [c.bits for c in sent.candidates]
    n = scores.clips if sent.clip_counts else 0
    return [
        Plan(
            row.client,
            row.method,
            row.tuned_on,
            depths,
            scores.clip_wrong[i * n : (i + 1) * n],
            scores.clip_of[i * n : (i + 1) * n],
        )
        for i, (row, depths) in enumerate(zip(rows, bits, strict=True))
    ]


def _counts(scores: m.Scores, index: int) -> dict[str, Any]:
    """Return the counts and rates of one model; those of the other task are None."""
    names = ("errors", "words", "char_errors", "chars", "correct")
    counts = {n: getattr(scores, n)[index] if getattr(scores, n) else None for n in names}
    return counts | {
        "low": _finite(scores.low[index]),
        "high": _finite(scores.high[index]),
        "wer": _rate(counts["errors"], counts["words"]),
        "cer": _rate(counts["char_errors"], counts["chars"]),
        "accuracy": _rate(counts["correct"], scores.clips),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rate(count: int | None, total: int | None) -> float | None:
    return count / total if count is not None and total else None
