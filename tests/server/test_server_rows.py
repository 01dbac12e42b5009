"""Rows of the ledger from a client's scores."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from fedsim_server.planner import Planner
from fedsim_server.rows import result_rows
from plan_toys import no_public
from scripted import DEPTHS, LAYERS, OWN, run_scripted, scenario

from fedsim.engine.flower_internals import server_identity
from fedsim.protocol import messages as m
from fedsim.quant.bank import LayerBank
from fedsim.quant.granularities import PER_TENSOR


@pytest.fixture(autouse=True)
def identity():
    with server_identity():
        yield


@pytest.fixture
def run(tmp_path):
    return partial(run_scripted, tmp_path)


def test_rows_of_a_recognizer(run):
    _, rows, _, _ = run(OWN)
    full, own = rows[:2]
    assert (full.method, full.allocation, full.calibration) == ("fp32", "fp32", "-")
    assert (full.mean_bits, full.plan_sha256, full.tuned_on) == (32.0, "", "")
    assert (own.method, own.allocation, own.calibration) == ("myqasr/minmax", "myqasr", "minmax")
    assert (own.file_bytes, own.errors, own.words) == (276, 1, 5)
    assert (own.wer, own.cer, own.budget_bytes) == (0.2, 0.1, 300)
    assert (own.low, own.high, own.clips) == (0.0, 1.0, 4)
    assert (own.correct, own.accuracy) == (None, None)
    assert DEPTHS[0] <= own.mean_bits <= DEPTHS[-1]


def rows_of(scores: m.Scores, **asked):
    study = scenario(*OWN)
    bank = LayerBank({}, LAYERS, PER_TENSOR, None)
    request = m.Evaluation(True, (), **asked)
    summary = m.Summary("ann", 300, DEPTHS, 4, ())
    planner = Planner(study, None, bank, no_public(LAYERS), 100)
    return result_rows(request, scores, summary, planner)


def test_rows_of_a_classifier():
    (row,) = rows_of(m.Scores("ann", 4, (100,), (), (), (), (), (3,), (0.5,), (1.0,)))
    assert (row.correct, row.accuracy) == (3, 0.75)
    assert (row.errors, row.words, row.wer, row.char_errors, row.chars, row.cer) == (None,) * 6
    (none,) = rows_of(m.Scores("ann", 4, (100,), (), (), (), (), (0,), (0.0,), (0.0,)))
    assert (none.correct, none.accuracy) == (0, 0.0)


def test_rows_of_a_model_that_loops():
    words = ((6,), (20,), (9,), (80,))
    without = m.Scores("ann", 4, (100,), *words, (), (0.1,), (0.5,), (0,), (0,), (0,))
    (row,) = rows_of(without)
    assert (row.looped, row.looped_errors, row.looped_words) == (0, 0, 0)
    assert row.wer == row.rate_without_loops == 0.3
    (row,) = rows_of(replace(without, looped=(1,), looped_errors=(5,), looped_words=(10,)))
    assert (row.errors, row.words, row.wer) == (6, 20, 0.3)
    assert (row.looped, row.looped_errors, row.looped_words) == (1, 5, 10)
    assert row.rate_without_loops == 0.1  # 1 of 10 words
    (all_loop,) = rows_of(replace(without, looped=(4,), looped_errors=(6,), looped_words=(20,)))
    assert (all_loop.wer, all_loop.rate_without_loops) == (0.3, None)
    (never,) = rows_of(replace(without, looped=(), looped_errors=(), looped_words=()))
    assert (never.looped, never.wer, never.rate_without_loops) == (None, 0.3, None)


def test_rows_hold_what_was_counted_and_how():
    scores = m.Scores("ann", 4, (100,), (6,), (20,), (9,), (90,), (), (0.1,), (0.5,))
    looped = replace(scores, looped=(1,), looped_errors=(4,), looped_words=(40,))
    (row,) = rows_of(looped, metric="cer", text_normalizer="none")
    assert (row.metric, row.text_normalizer) == ("cer", "none")
    assert (row.wer, row.cer, row.rate_without_loops) == (0.3, 0.1, 0.1)  # 5 of 50 characters
    (row,) = rows_of(scores)
    assert (row.metric, row.text_normalizer) == ("wer", "basic")
    classes = m.Scores("ann", 4, (100,), (), (), (), (), (3,), (0.5,), (1.0,))
    (row,) = rows_of(classes, metric="cer")
    assert (row.metric, row.text_normalizer) == ("accuracy", "-")


def test_a_rate_over_nothing_is_none():
    nan = float("nan")
    scores = m.Scores("ann", 4, (100,), (2,), (0,), (5,), (0,), (), (nan,), (nan,))
    (row,) = rows_of(scores)
    assert (row.errors, row.words, row.wer, row.cer) == (2, 0, None, None)
    assert (row.low, row.high) == (None, None)


def test_allocations_are_names_that_a_scenario_may_use(run):
    """Rows can be grouped by allocation: a draw or an order is no allocation of its own."""
    methods = (
        {"allocation": "shuffled", "draws": 2, "calibration": ["none"]},
        {"allocation": "myqasr", "order": "ascending", "calibration": ["none", "minmax"]},
    )
    _, rows, _, _ = run(methods)
    assert {(r.method, r.allocation) for r in rows} == {
        ("shuffled-1/none", "shuffled"),
        ("shuffled-2/none", "shuffled"),
        ("myqasr-asc/none", "myqasr"),
        ("myqasr-asc/minmax", "myqasr"),
    }
