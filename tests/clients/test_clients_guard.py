"""A device answers what its own scenario says, whatever a server asks for."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from fedsim_clients.guard import check_request

from fedsim.errors import FedsimError
from fedsim.privacy.secure_aggregation import wire
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.protocol.limits import check_size, max_message_bytes, max_models
from fedsim.scenario import Scenario


def scenario(**sections):
    corpus = {"kind": "voices", "group_by": "speaker", "population": {"speakers": 4}}
    usual = {"name": "x", "model": {"id": "m"}, "corpus": corpus, "clients": {"budget_mb": 1}}
    return Scenario.model_validate({**usual, "methods": ["myqasr"], **sections})


PLAIN = m.SenseRequest("median")
NOISY = {"privacy": {"release": "noisy", "rounds": 2, "delta": 1e-5}}
OTHERS = {"methods": [{"allocation": "myqasr", "tuned_on": ["own", "other"]}]}


FLEET = {"fleet": {"trace": "t.csv"}}
BY_STD = {"quantization": {"sensitivity": "std"}}
REFUSED = [
    # (request, sections of one that grants it or None, words of the refusal of one that does not)
    (replace(PLAIN, quantiles=True), {"study": True}, "quantiles: .* study: true"),
    (m.Evaluation(True, (), clip_counts=True), {"study": True}, "each clip: .* study: true"),
    (replace(PLAIN, workload=True), FLEET, "workload: .* no fleet"),
    (m.Evaluation(True, (), workload=True), FLEET, "workload: .* no fleet"),
    (m.Evaluation(True, (), metric="cer"), {"metric": "cer"}, "metric 'cer': .* 'wer'"),
    (m.Evaluation(True, (), metric="ter"), None, "metric 'ter': .* 'wer'"),
    (
        m.Evaluation(True, (), text_normalizer="none"),
        {"text_normalizer": "none"},
        "texts normalized by 'none': .* 'basic'",
    ),
    (
        m.Evaluation(True, (), rare_beyond=5_000),
        {"rare_beyond": 5_000},
        "words beyond the 5,000 most frequent: .* None",
    ),
    (m.Delivery(True, ()), OTHERS, "its models: .* another client's clips"),
    (replace(PLAIN, round=2), NOISY, "round 2: .* rounds 1 to 1"),
    (m.SenseRequest("std"), BY_STD, "measure 'std': .* 'median'"),
    (wire.Post("std", (), (), (), ()), BY_STD, "measure 'std': .* 'median'"),
]


def test_a_device_gives_what_its_scenario_says():
    for request, granted, words in REFUSED:
        if granted is not None:
            check_request(scenario(**granted), "ann", request)
        with pytest.raises(FedsimError, match=f"client 'ann' refuses .*{words}; give both"):
            check_request(scenario(metric="wer"), "ann", request)


def test_where_the_metric_is_automatic_the_server_chooses():
    for metric in ("wer", "cer"):
        check_request(scenario(), "ann", m.Evaluation(True, (), metric=metric))
    with pytest.raises(FedsimError, match="the metric 'accuracy': its scenario has 'auto'"):
        check_request(scenario(), "ann", m.Evaluation(True, (), metric="accuracy"))


def test_rounds_that_the_scenario_does_not_have():
    for good in (1, 2):
        check_request(scenario(**NOISY), "ann", replace(PLAIN, round=good))
    for number in (-3, 0, 3, 1001):
        with pytest.raises(FedsimError, match=f"round {number}: .* rounds 1 to 2"):
            check_request(scenario(**NOISY), "ann", replace(PLAIN, round=number))


def test_a_device_that_knows_itself_alone_takes_models_of_many_others():
    """`tuned_on: each` sends one model per client; a device of a deployment knows one client."""
    methods = {"methods": [{"allocation": "myqasr", "tuned_on": ["own", "each"]}]}
    own = scenario(methods=[{"allocation": "myqasr", "tuned_on": ["own"]}])
    layers = 25
    candidate = m.Candidate(
        "myqasr/minmax",
        "minmax",
        "c",
        (4,) * layers,
        bytes(32 * layers),
        (8,) * layers,
        ranges=(0.1,) * 2 * layers,
    )
    record = codec.to_record(m.Evaluation(True, (candidate,) * 100))
    check_size(
        m.Evaluation,
        record,
        max_message_bytes(m.Evaluation, layers, models=max_models(scenario(**methods))),
        "the server",
    )
    max_bytes = max_message_bytes(m.Evaluation, layers, models=max_models(own))
    with pytest.raises(FedsimError, match="refused unread"):
        check_size(m.Evaluation, record, max_bytes, "the server")


def test_every_message_of_the_server_is_checked(device):
    """A device reads none without the check, and a sound one as it is."""
    for message in (replace(PLAIN, round=2), m.Evaluation(True, (), clip_counts=True)):
        sent = SimpleNamespace(content=codec.to_record(message))
        with pytest.raises(FedsimError, match="client 'ann' refuses"):
            device.read(type(message), sent)
    sent = SimpleNamespace(content=codec.to_record(PLAIN))
    assert device.read(m.SenseRequest, sent) == PLAIN
