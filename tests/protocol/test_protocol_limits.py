"""Messages that are larger than their type can be: refused before they are read."""

import numpy as np
import pytest
import toys
from own_engine import answering
from plan_toys import scenario

from fedsim.errors import FedsimError
from fedsim.privacy.secure_aggregation import wire
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.protocol.limits import check_size, max_message_bytes, max_models, max_public_bytes
from fedsim.run.single import run_scenario
from fedsim.scenario import load_scenario

LAYERS, DEPTHS = 40, tuple(range(2, 17))
LARGE = (
    m.Summary("a", 1, (2,), 3, tuple(np.ones(LAYERS)), tuple(np.ones(LAYERS * 33))),
    m.Receipt("a", (1, 2), tuple(np.ones(2 * LAYERS * 2)), bytes(2 * LAYERS * 32)),
    m.Summary("a", 1, DEPTHS, 3, tuple(np.ones(LAYERS * len(DEPTHS))), depths=DEPTHS),
    m.Scores("a", 3, *[(1, 2)] * 5, (), (0.1, 0.2), (0.1, 0.2), (1,) * 6, (1,) * 6),
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


PUBLIC = 60_000


@pytest.mark.parametrize("kind", [m.Delivery, m.Evaluation])
def test_what_comes_down_fits_with_its_layers_and_the_public_clips(kind):
    rounded = m.Candidate("a", "cosine", "a", (4,) * LAYERS, bytes(32 * LAYERS), (8,) * LAYERS)
    blended = m.Candidate(
        *("b", "cosine", "a", (4,) * LAYERS, b"", (8,) * LAYERS),
        *("compensated", "blend", bytes(32), tuple(np.ones(2 * LAYERS))),
    )
    layers = (bytes(1000),) * LAYERS
    message = kind(False, (rounded, blended), layers=(*layers, bytes(PUBLIC)))
    size = max_message_bytes(kind, LAYERS, models=2, packed=1000 * LAYERS, public=PUBLIC)
    check_size(kind, codec.to_record(message), size, "the server")
    less = max_message_bytes(kind, LAYERS, models=2, packed=1000 * LAYERS)
    assert less == size - PUBLIC


def test_a_device_takes_public_clips_where_it_blends():
    def bytes_of(**quantization):
        return max_public_bytes(scenario("uniform", **quantization))

    compensated = {"rounding": "compensated", "public_count": 10}
    assert bytes_of(**compensated) == bytes_of(**compensated, moments="own") == 0
    assert bytes_of(**compensated, moments="blend") == 10 * 30 * 16_000 * 2
    assert bytes_of(rounding="nearest", moments="blend") == 0


def test_a_message_holds_a_model_for_each_way_to_round():
    two = {"allocation": "uniform", "rounding": ["nearest", "compensated"], "moments": ["own"]}
    three = {**two, "moments": ["public", "blend"]}
    counts = [max_models(scenario("fp32", method)) for method in ("uniform", two, three)]
    assert counts == [1 + 1 + 1, 1 + 1 + 2, 1 + 1 + 3]


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
