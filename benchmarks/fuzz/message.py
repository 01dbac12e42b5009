"""Answers of devices, with fields changed: refused in a sentence, or usable to the end.

What is accepted becomes rows of a ledger and a table, whose rates must be possible ones.
"""

from __future__ import annotations

import json
import math
import random
import struct
import traceback
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fedsim_server.planner import Planner
from fedsim_server.rows import result_rows, tested_plans
from flwr.app import ConfigRecord, RecordDict

from benchmarks.fuzz import Finding
from fedsim.errors import FedsimError
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.protocol.known import Known
from fedsim.protocol.limits import check_size, max_message_bytes
from fedsim.protocol.rules import broken_rule
from fedsim.quant.bank import BlobStore, LayerBank
from fedsim.quant.granularities import PER_TENSOR
from fedsim.quant.layers import Layer
from fedsim.quant.sizes import Sizes
from fedsim.results.ledger import Ledger
from fedsim.results.lines import table_lines
from fedsim.results.records import Log
from fedsim.results.rows import Sensed
from fedsim.scenario.schema import Scenario
from fedsim.speech.public_model import PublicModel
from fedsim.speech.public_set import PublicSet

LAYERS = (Layer("one", "linear", (8, 10)), Layer("two", "linear", (8, 12)))
SIZES = Sizes((2, 4, 8), np.array([[20, 40, 80], [24, 48, 96]]), 100)
PLAN = m.Candidate("myqasr/minmax", "minmax", "ann", (4, 8), bytes(64), (8, 8))
FULL, CLIPS = 704, 3
SUMMARY = m.Summary("ann", 300, (2, 4, 8), 4, (2.0, 1.0))
SCORES = m.Scores(
    *("ann", CLIPS, (FULL, 236), (1, 3), (9, 9), (2, 5), (40, 40), (), (0.0, 0.1), (0.2, 0.5)),
    clip_wrong=(0, 1, 0, 1, 1, 1),
    clip_of=(3, 3, 3, 3, 3, 3),
    rare_errors=(0, 1),
    rare_words=(2, 2),
)
EXCHANGES: tuple[tuple[Any, Any], ...] = (
    (m.SenseRequest("median"), SUMMARY),
    (m.Delivery(True, (PLAN,)), m.Receipt("ann", (236,), (0.0, 1.0, -1.0, 2.0))),
    (m.Evaluation(True, (PLAN,), clip_counts=True, rare_beyond=5_000), SCORES),
)
NUMBERS = (0, 1, -1, 2, 255, 2**31, 2**53, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-310, 1e39, 1e308, math.inf, -math.inf, math.nan)
TEXTS = ("", "bob", "own", "\x00", "é" * 300, "<b>", "../../etc", "\ud7ff")


def try_one(rng: random.Random, home: Path) -> Finding | None:
    """Change an answer in one to three places, and read it as a server does."""
    request, answer = rng.choice(EXCHANGES)
    record = dict(codec.to_record(answer)["message"])
    for _ in range(rng.randint(1, 3)):
        _change(rng, record)
    content = json.dumps({k: repr(v) for k, v in record.items()}, indent=1).encode()
    try:
        wrong = _read(request, type(answer), record, home)
    except FedsimError as error:
        wrong = "" if len(str(error)) < 2_000 else f"an error of {len(str(error))} characters"
    except Exception:
        wrong = traceback.format_exc()
    return Finding(content, wrong) if wrong else None


def _change(rng: random.Random, record: dict[str, Any]) -> None:
    seldom = ("protocol", "client")  # another one ends the reading at once
    key = rng.choice([k for k in sorted(record) if k not in seldom or rng.random() < 0.1])
    value = record[key]
    if rng.random() < 0.05:
        del record[key]
    elif rng.random() < 0.05:
        record[rng.choice(["budget", key + "_"])] = value
    elif isinstance(value, list) and rng.random() < 0.9:
        record[key] = _changed_list(rng, value)
    else:
        record[key] = _other(rng, value)


def _changed_list(rng: random.Random, values: list[Any]) -> list[Any]:
    values = list(values)
    action = rng.randrange(4)
    if action == 0:
        values = values * rng.choice([0, 2, 50])
    elif action == 1 and values:
        values.pop(rng.randrange(len(values)))
    elif values:
        place = rng.randrange(len(values))
        values[place] = _other(rng, values[place])
    kinds = {type(value) for value in values}
    return values if len(kinds) < 2 else []  # a record holds lists of one type


def _other(rng: random.Random, value: Any) -> Any:
    if rng.random() < 0.05:
        return rng.choice([0, 1.5, "text", b"bytes", True])
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([*NUMBERS, value + rng.choice([-1, 1])])
    if isinstance(value, float):
        drawn = struct.unpack("<d", rng.randbytes(8))[0]
        return rng.choice([*FLOATS, -value, drawn])
    if isinstance(value, str):
        return rng.choice(TEXTS)
    if isinstance(value, bytes):
        return rng.randbytes(rng.choice([0, 1, 31, 32, 64]))
    return value


def _read(request: Any, kind: type, record: dict[str, Any], home: Path) -> str:
    """Return what is absurd in what was accepted; raises `FedsimError` for what was not."""
    sent = RecordDict({"message": ConfigRecord(record)})
    check_size(kind, sent, max_message_bytes(kind, 2, models=2, clips=CLIPS), "client 'ann'")
    answer: Any = codec.from_record(kind, sent, "client 'ann'")
    if answer.client != "ann":
        raise FedsimError("another client's key")
    models = (FULL, 236) if kind is m.Scores else (236,)
    known = Known(2, SIZES.depths, 4, sizes=models, static=(True,))
    problem = broken_rule(request, answer, known)
    if problem:
        raise FedsimError(problem)
    if isinstance(answer, m.Summary):
        _planner(home).own(answer)
    if isinstance(answer, m.Scores):
        return _finish(request, answer, home)
    return ""


def _finish(request: m.Evaluation, scores: m.Scores, home: Path) -> str:
    rows = result_rows(request, scores, SUMMARY, _planner(home))
    path = home / "ledger.sqlite"
    path.unlink(missing_ok=True)
    with Ledger(path) as ledger:
        plans = tested_plans(request, scores, rows)
        ledger.finish_client("ann", rows, plans, Sensed("ann", (2.0, 1.0)), Log(), [])
        kept = ledger.rows()
    if kept != rows:
        return f"the ledger returns other rows: {kept}"
    for line in table_lines(rows):
        for row in line.rows:
            if row.wer is None or not 0 <= row.wer < math.inf or not 0 <= (row.cer or 0) < math.inf:
                return f"a rate that cannot be: {row}"
    return ""


@cache
def _planner(home: Path) -> Planner:
    scenario = Scenario.model_validate(
        {
            "name": "fuzz",
            "model": {"id": "none"},
            "corpus": {"path": "none", "group_by": "speaker"},
            "clients": {"budget_mb": 1.0, "bit_depths": [2, 4, 8]},
            "quantization": {"weights": "per_tensor", "zero_points": False, "rounding": "nearest"},
            "methods": ["fp32", {"allocation": "myqasr", "calibration": "minmax"}],
        }
    )
    weights = {layer.name: torch.ones(layer.shape) for layer in LAYERS}
    bank = LayerBank(weights, LAYERS, PER_TENSOR, BlobStore(home / "bank"))
    (home / "bank").mkdir(exist_ok=True)
    model: Any = SimpleNamespace(layers=LAYERS, task="transcribe", needs_tokens=False)
    public = PublicModel(model, PublicSet, 1)  # which is never asked for clips
    return Planner(scenario, SIZES, bank, public, FULL)
