"""Messages that are larger than their type can be: refused before they are read."""

import numpy as np
import pytest
import toys
from own_engine import answering

from fedsim.errors import FedsimError
from fedsim.privacy.secure_aggregation import wire
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.protocol.limits import check_size, max_message_bytes
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario

LAYERS = 40
LARGE = (
    m.Summary("a", 1, (2,), 3, tuple(np.ones(LAYERS)), tuple(np.ones(LAYERS * 33))),
    m.Receipt("a", (1, 2), tuple(np.ones(2 * LAYERS * 2))),
    m.Scores("a", 3, *[(1, 2)] * 5, (), *[(0.1, 0.2)] * 2, *[(1, 2)] * 3, *[(1,) * 6] * 2),
    wire.Keys(1, bytes(32), bytes(32)),
    wire.Envelopes((1,) * 8, (bytes(60),) * 8),
    wire.Masked(bytes(4 * LAYERS)),
    wire.Shares((1,) * 9, (bytes(16),) * 9),
)


def test_what_is_larger_than_its_type_can_be_is_refused_unread():
    for message in LARGE:
        kind = type(message)
        size = max_message_bytes(kind, LAYERS, models=2, clips=3, members=9)
        check_size(kind, codec.to_record(message), size, "client 'a'")
        record = codec.to_record(message)
        record["message"]["more"] = bytes(size)
        with pytest.raises(FedsimError, match=f"from client 'a' is refused unread: .* {size:,};"):
            check_size(kind, record, size, "client 'a'")


def test_a_large_reply_is_refused_with_its_sender(study, engine, tmp_path):
    def flood(summary):
        return m.Summary(**{**vars(summary), "quantiles": (0.0,) * 1_000_000})

    engine.mods = [answering("bob", m.SENSE, m.Summary, flood)]
    overrides = ["engine.kind=own", "save_models=false", "methods=[fp32, uniform]"]
    result = run_scenario(load_scenario(study.file, overrides), tmp_path / "run")
    (failure,) = result.failures
    assert (failure.client, failure.outcome) == ("bob", "quarantined")
    assert "the message from client 'bob' is refused unread: it has 8,000," in failure.reason
    assert {row.client for row in result.rows} == set(toys.SPEAKERS) - {"bob"}
