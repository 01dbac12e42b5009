"""A Grid whose clients are scripted, and runs of the coordinator over it: no model, no audio."""

from __future__ import annotations

import numpy as np
import paper
import torch
from fedsim_server.coordinator import Coordinator
from fedsim_server.messaging import WINDOW
from fedsim_server.planner import Planner
from fedsim_server.roster import Roster
from fedsim_server.summaries import summary_reader
from flwr.app import Error, Message, RecordDict
from plan_toys import no_public

from fedsim.engine.flower_internals import set_message_id
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.quant.allocation import Sizes
from fedsim.quant.bank import BlobStore, LayerBank
from fedsim.quant.granularities import PER_TENSOR
from fedsim.quant.layers import Layer
from fedsim.quant.packing import packed_bytes
from fedsim.results.ledger import Ledger
from fedsim.scenario.cells import needs_others
from fedsim.scenario.schema import Scenario

LAYERS = (Layer("one", "linear", (8, 10)), Layer("two", "linear", (8, 12)))
DEPTHS = (2, 4, 8)
FULL_BYTES = 4 * sum(layer.n_weights for layer in LAYERS)
SIZES = Sizes(
    DEPTHS, np.array([[packed_bytes(layer.n_weights, d) for d in DEPTHS] for layer in LAYERS]), 100
)
NODES = {11: "ann", 12: "bob", 13: "cyd"}


class ScriptedGrid:
    """A Grid that answers with `answer(client, type, record)`; a list of what was sent."""

    def __init__(self, answer, names=NODES, delay=0):
        self.answer, self.names, self.delay = answer, names, delay
        self.sent, self.answered, self.max_waiting = [], [], 0
        self.waiting: dict[str, Message] = {}

    def get_node_ids(self):
        return list(self.names)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            message_id = f"{len(self.sent):032x}"
            set_message_id(message, message_id)
            kind = message.metadata.message_type
            self.sent.append((self.names[message.metadata.dst_node_id], kind))
            self.waiting[message_id] = message
            ids.append(message_id)
        self.max_waiting = max(self.max_waiting, len(self.waiting))
        return ids

    def pull_messages(self, message_ids):
        if self.delay:
            self.delay -= 1
            return []
        message_id = next(iter(message_ids))
        message = self.waiting.pop(message_id)
        client = self.names[message.metadata.dst_node_id]
        self.answered.append((client, message.metadata.message_type))
        found = self.answer(client, message.metadata.message_type, message.content)
        if isinstance(found, str):
            return [Message(Error(2, found), reply_to=message)]
        content = found if isinstance(found, RecordDict) else codec.to_record(found)
        return [Message(content, reply_to=message)]


def scenario(*methods) -> Scenario:
    return Scenario.model_validate(
        {
            "name": "toy",
            "model": {"id": "none"},
            "corpus": {"path": "none", "group_by": "speaker", "tuning_clips": 16, "test_clips": 9},
            "clients": {"budget_mb": 1.0, "bit_depths": list(DEPTHS)},
            "quantization": paper.QUANTIZATION,
            "methods": list(methods),
        }
    )


OWN = ("fp32", {"allocation": "myqasr", "calibration": ["minmax"]})
SHARED = ("fp32", {"allocation": "myqasr", "calibration": ["minmax"], "tuned_on": ["own", "other"]})


def good(client, kind, record):
    """What an honest client answers."""
    if kind == m.SENSE:
        measure = codec.from_record(m.SenseRequest, record, "the server").measure
        return m.Summary(client, 300, DEPTHS, 4, (2.0, 1.0) if measure else ())
    if kind == m.PERSONALIZE:
        delivery = codec.from_record(m.Delivery, record, "the server")
        sizes = tuple(SIZES.total(candidate.bits) for candidate in delivery.candidates)
        ranges = (0.0, 1.0) * 2 * len(sizes) if delivery.return_models else ()
        return m.Receipt(client, sizes, ranges)
    evaluation = codec.from_record(m.Evaluation, record, "the server")
    sizes = [FULL_BYTES] * evaluation.full_precision
    sizes += [SIZES.total(candidate.bits) for candidate in evaluation.candidates]
    n = len(sizes)
    counts = [(size, i, 5, 2 * i, 20) for i, size in enumerate(sizes)]
    columns = list(zip(*counts, strict=True)) or [()] * 5
    return m.Scores(client, 4, *columns, (), (0.0,) * n, (1.0,) * n)


def but(client, kind, answer):
    """Return honest clients, but for one reply of one of them."""

    def answer_(who, what, record):
        return answer if (who, what) == (client, kind) else good(who, what, record)

    return answer_


def run_scripted(
    home,
    methods,
    answer=good,
    names=NODES,
    known=True,
    window=WINDOW,
    planner=Planner,
    **options,
):
    """Run a study of scripted clients; return its grid, rows, failures and releases."""
    weights = {layer.name: torch.ones(layer.shape) for layer in LAYERS}
    chosen = scenario(*methods)
    bank = LayerBank(weights, LAYERS, PER_TENSOR, BlobStore(home / "bank"))
    planner = planner(chosen, SIZES, bank, no_public(LAYERS), FULL_BYTES)
    grid = ScriptedGrid(answer, names, **options)
    with Ledger(home / f"{len(list(home.iterdir()))}.sqlite") as ledger:
        known_names = dict(names) if known else {}
        Coordinator(
            grid,
            chosen,
            planner,
            Roster(ledger, known_names, needs_others(chosen)),
            summary_reader(chosen, len(LAYERS), None),
            window=window,
            pause_s=0.0,
        ).run()
        return grid, ledger.rows(), ledger.failures(), ledger.all_releases()
