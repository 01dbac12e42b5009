"""The typed messages: they survive Flower's wire, and nothing else gets through."""

from __future__ import annotations

import typing
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples

from fedsim.errors import FedsimError
from fedsim.privacy.secure_aggregation import wire
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.quant.profile import LayerProfile

KINDS = typing.get_args(m.Message)
GROUP = (wire.Keys, wire.Envelopes, wire.Masked, wire.Shares)
UPWARDS = (m.Summary, m.Receipt, m.Scores, *GROUP)

INTEGERS = st.integers(-(2**62), 2**62)
PLAIN = {
    str: st.text(max_size=20),
    int: INTEGERS,
    bool: st.booleans(),
    bytes: st.binary(max_size=70),
    tuple[int, ...]: st.lists(INTEGERS, max_size=5).map(tuple),
    tuple[float, ...]: st.lists(st.floats(allow_nan=False), max_size=5).map(tuple),
    tuple[bytes, ...]: st.lists(st.binary(max_size=70), max_size=5).map(tuple),
}
CANDIDATE_FIELDS = {name: PLAIN[hint] for name, hint in typing.get_type_hints(m.Candidate).items()}
CANDIDATE = st.builds(m.Candidate, **CANDIDATE_FIELDS)
STRATEGIES = {**PLAIN, tuple[m.Candidate, ...]: st.lists(CANDIDATE, max_size=3).map(tuple)}


def any_of(kind):
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{name: STRATEGIES[hint] for name, hint in hints.items()})


def wired(record: RecordDict) -> RecordDict:
    """What comes out at the other end of Flower's own serialization."""
    data = recorddict_to_proto(record).SerializeToString()
    return recorddict_from_proto(ProtoRecordDict.FromString(data))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=examples(60))
@given(data=st.data())
def test_every_message_survives_the_wire(kind, data):
    message = data.draw(any_of(kind))
    assert codec.from_record(kind, wired(codec.to_record(message)), "someone") == message


def test_nan_and_infinity_survive_the_wire():
    """Layers without a range have NaN for one."""
    receipt = m.Receipt("ann", (1, 2), (float("nan"), 1.0, -float("inf"), float("inf")))
    found = codec.from_record(m.Receipt, wired(codec.to_record(receipt)), "ann")
    np.testing.assert_array_equal(found.ranges, receipt.ranges)
    exact = replace(receipt, ranges=(0.1, 1 / 3, 5e-324, 1.7976931348623157e308))
    assert codec.from_record(m.Receipt, wired(codec.to_record(exact)), "ann") == exact


def candidate(name: str) -> m.Candidate:
    return m.Candidate(name, "minmax", "ann", (2, 3), bytes(64), (8, 8))


def test_candidates_keep_their_order():
    """Only their place identifies scores: also in a very large study."""
    many = tuple(candidate(str(i)) for i in range(10_050))
    message = m.Evaluation(False, many)
    found = codec.from_record(m.Evaluation, codec.to_record(message), "the server")
    assert [c.name for c in found.candidates] == [c.name for c in many]


SUMMARY = m.Summary("ann", 1000, (2, 4), 3, (0.5, 0.25))
SCORES = m.Scores("ann", 3, (10,), (1,), (4,), (2,), (16,), (), (0.1,), (0.5,), (1,), (1,), (2,))
DELIVERY = m.Delivery(True, (candidate("a"), candidate("b")))


def test_a_table_of_losses_travels():
    """As written: a row per layer, a column per depth, at full precision."""
    table = np.array([[0.5, 0.25, 1 / 3], [1e-9, -2.0, 3e300]])
    profile = LayerProfile(table, "loss", (2, 4, 8))
    sent = replace(SUMMARY, sensitivity=tuple(profile.flat.tolist()), depths=profile.depths)
    for received in (
        codec.from_record(m.Summary, codec.to_record(sent), "client 'ann'"),
        codec.from_text(m.Summary, codec.to_text(sent)),
    ):
        got = received.profile("loss")
        assert got.depths == (2, 4, 8)
        assert np.array_equal(got.values, table)
    with pytest.raises(FedsimError, match="one value per layer and depth"):
        replace(sent, depths=(2, 4, 6, 8)).profile("loss")


def spoiled(message, **changes) -> RecordDict:
    """The record of a message with fields changed, added or (...) removed."""
    record = codec.to_record(message)
    values = {k: v for k, v in {**record["message"], **changes}.items() if v is not ...}
    record["message"] = ConfigRecord(values)
    return record


WRONG = [
    ({"clips": ...}, "'clips' is missing or unknown"),
    ({"transcript": "hello"}, "'transcript' is missing or unknown"),
    ({"clips": 3.0}, "'clips' is 3.0"),
    ({"clips": True}, "'clips' is True"),
    ({"clips": "3"}, "'clips' is '3'"),
    ({"clips": [3]}, r"'clips' is \[3\]"),
    ({"client": b"ann"}, "'client' is b'ann'"),
    ({"client": 7}, "'client' is 7"),
    ({"sensitivity": [1, 2]}, r"'sensitivity' is \[1, 2\]"),
    ({"sensitivity": 0.5}, "'sensitivity' is 0.5"),
    ({"bit_depths": [2.0, 4.0]}, r"'bit_depths' is \[2.0, 4.0\]"),
    ({"bit_depths": ["2"]}, r"'bit_depths' is \['2'\]"),
    ({"bit_depths": [True]}, r"'bit_depths' is \[True\]"),
    ({"protocol": ...}, "'protocol' is missing"),
]


def test_fields_that_do_not_fit():
    for changes, words in WRONG:
        record = wired(spoiled(SUMMARY, **changes))
        with pytest.raises(FedsimError, match=f"'ann' is not a valid Summary: field {words}; run"):
            codec.from_record(m.Summary, record, "client 'ann'")


def test_another_version_is_an_error_of_its_own():
    record = spoiled(SUMMARY, protocol=m.PROTOCOL + 1)
    with pytest.raises(codec.VersionError, match=r"client 'ann' .* run the same version"):
        codec.from_record(m.Summary, record, "client 'ann'")


def test_a_long_value_is_cut_in_the_sentence():
    record = spoiled(SUMMARY, clips="audio " * 1000)
    with pytest.raises(FedsimError) as caught:
        codec.from_record(m.Summary, record, "client 'ann'")
    assert len(str(caught.value)) < 200


def with_record(message, name, content) -> RecordDict:
    record = codec.to_record(message)
    record[name] = content
    return record


FOREIGN = [
    RecordDict(),
    RecordDict({"other": ConfigRecord({"clips": 3})}),
    with_record(SUMMARY, "more", ConfigRecord({"clips": 3})),
    with_record(SUMMARY, "audio", ArrayRecord([np.zeros(16_000, np.float32)])),
    with_record(SUMMARY, "metrics", MetricRecord({"wer": 0.1})),
    with_record(SUMMARY, "candidate.000000", ConfigRecord({"text": "hello"})),
    with_record(SUMMARY, "candidate.audio", ArrayRecord([np.zeros(9)])),
    RecordDict({"message": MetricRecord({"clips": 3})}),
]


def test_records_that_do_not_belong():
    for record in FOREIGN:
        with pytest.raises(FedsimError, match="client 'ann' is not a valid Summary: it holds"):
            codec.from_record(m.Summary, record, "client 'ann'")


def test_a_message_of_another_kind():
    for kind in KINDS:
        for message in (
            SUMMARY,
            SCORES,
            DELIVERY,
            m.SenseRequest("median"),
            m.Receipt("a", (), ()),
        ):
            if not isinstance(message, kind):
                with pytest.raises(FedsimError, match=f"the server is not a valid {kind.__name__}"):
                    codec.from_record(kind, codec.to_record(message), "the server")


def test_candidates_are_checked_as_well():
    record = codec.to_record(DELIVERY)
    record["candidate.000001"] = ConfigRecord({**record["candidate.000001"], "bits": [2.5]})
    with pytest.raises(FedsimError, match=r"not a valid Candidate: field 'bits' is \[2"):
        codec.from_record(m.Delivery, record, "the server")
    record["candidate.000001"] = ConfigRecord({**record["candidate.000000"], "audio": [0.5, 0.5]})
    with pytest.raises(FedsimError, match="not a valid Candidate: field 'audio'"):
        codec.from_record(m.Delivery, record, "the server")


NAMES = {
    (wire.Post, "measure"),
    (m.SenseRequest, "measure"),  # of a sensitivity measure
    (m.Summary, "client"),
    (m.Summary, "language"),  # of the client, where models differ by language
    (m.Receipt, "client"),
    (m.Scores, "client"),
    (m.Evaluation, "metric"),  # wer or cer
    (m.Evaluation, "text_normalizer"),  # of a function, never a text
    (m.Candidate, "name"),
    (m.Candidate, "calibration"),
    (m.Candidate, "tuned_on"),  # a client's key
    (m.Candidate, "rounding"),
    (m.Candidate, "moments"),  # own or blend: whose, never the moments themselves
    (m.Candidate, "runtime"),  # what computes it when it is tested
}


def leaves(kind):
    """Yield (class, field, type) of a message and of what is nested in it."""
    for name, hint in typing.get_type_hints(kind).items():
        item = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
        if is_dataclass(item):
            yield from leaves(item)
        else:
            yield kind, name, hint


def test_there_is_no_field_for_audio_or_text():
    """The privacy claim of this project in one place.

    Texts are names: of a client, a measure, a candidate, a calibrator; the only bytes are hashes
    and packed layers that the server sends down. Upwards go the client's key (which the server
    knows and compares), whole numbers, and floats: one sensitivity per layer, two ends of a range
    per layer and candidate, two ends of an interval per candidate; in a study, and not otherwise
    (tests/runner/test_run_matrix.py), 33 quantiles per layer; where there is a fleet, seconds of
    audio and a number of tokens. In place of the sensitivities there may be a payload; in a group,
    keys, sealed shares and masked codes. tests/clients/test_clients_bytes.py searches these bytes.
    """
    every = [leaf for kind in KINDS for leaf in leaves(kind)]
    assert {(k, n) for k, n, hint in every if hint is str} == NAMES
    assert {(k, n) for k, n, hint in every if hint is bytes} == {
        (m.Candidate, "blobs"),
        (m.Candidate, "public"),  # the hash of public clips
        (m.Receipt, "blobs"),  # hashes of layers, where another client tests the model
        (m.Summary, "payload"),
        *((wire.Keys, "seal"), (wire.Keys, "mask"), (wire.Masked, "codes")),
    }
    lists = {(k, n) for k, n, hint in every if hint == tuple[bytes, ...]}
    groups = lists - {(m.Delivery, "layers"), (m.Evaluation, "layers")}  # these only come down
    assert len(groups) == len(lists) - 2
    assert {k for k, _ in groups} == {wire.Roster, wire.Envelopes, wire.Post, wire.Shares}
    allowed = {str, int, bool, bytes, tuple[int, ...], tuple[float, ...], tuple[bytes, ...]}
    assert {hint for _, _, hint in every} <= allowed
    upwards = [leaf for kind in UPWARDS for leaf in leaves(kind)]
    assert {n for _, n, hint in upwards if hint is str} == {"client", "language"}
    assert {(k, n) for k, n, hint in upwards if hint == tuple[float, ...]} == {
        (m.Summary, "sensitivity"),
        (m.Summary, "quantiles"),
        (m.Summary, "workload"),
        (m.Scores, "workload"),
        (m.Receipt, "ranges"),
        (m.Scores, "low"),
        (m.Scores, "high"),
    }
    for kind in (*KINDS, m.Candidate):
        assert kind.__dataclass_params__.frozen


def test_field_bytes_by_hand():
    assert codec.field_bytes(m.SenseRequest("median")) == {
        "measure": 6,
        "quantiles": 1,
        "workload": 1,
        "round": 8,
        "low": 0,
        "high": 0,
    }
    assert codec.field_bytes(replace(SUMMARY, client="zoë")) == {
        "client": 4,  # UTF-8
        "budget_bytes": 8,
        "bit_depths": 16,
        "clips": 8,
        "sensitivity": 16,
        "quantiles": 0,
        "workload": 0,
        "payload": 0,
        "depths": 0,
        "language": 0,
    }
    assert codec.field_bytes(m.Receipt("ann", (), ())) == {
        "client": 3,
        "file_bytes": 0,
        "ranges": 0,
        "blobs": 0,
    }
    one = len("a") + len("minmax") + len("ann") + len("emulated") + 2 * 8 + 64 + 2 * 8
    expected = {"return_models": 1, "candidates": 2 * one, "layers": 0}
    assert codec.field_bytes(DELIVERY) == expected
    carried = replace(DELIVERY, layers=(b"abc", b"de"))
    assert codec.field_bytes(carried) == {**expected, "layers": 5}
    ranged = replace(candidate("a"), ranges=(0.0, 1.0, 0.0, 1.0))
    assert codec.field_bytes(m.Evaluation(False, (ranged,))) == {
        "full_precision": 1,
        "candidates": one + 4 * 8,
        "clip_counts": 1,
        "workload": 1,
        "layers": 0,
        "metric": 3,
        "text_normalizer": 5,
        "rare_beyond": 8,
    }


def test_field_bytes_lists_every_field():
    """An empty list of candidates is listed as well: nothing that moved is left out."""
    for message in (SUMMARY, SCORES, DELIVERY, m.Evaluation(True, ()), m.SenseRequest("")):
        assert set(codec.field_bytes(message)) == {f.name for f in fields(message)}


@settings(deadline=None, max_examples=examples(30))
@given(data=st.data())
def test_field_bytes_are_those_of_the_values(data):
    """Within what the wire adds: names of fields, tags, lengths; numbers may take less there."""
    message = data.draw(any_of(m.Scores))
    counted = sum(codec.field_bytes(message).values())
    sent = len(recorddict_to_proto(codec.to_record(message)).SerializeToString())
    assert sent < 3 * counted + 1000
