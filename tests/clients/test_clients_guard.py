"""A device answers what its own scenario says, whatever a server asks for."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from fedsim_clients.device import Device
from fedsim_clients.guard import check_request
from fedsim_clients.runtime import open_runtime

from fedsim.errors import FedsimError
from fedsim.privacy.secure_aggregation import wire
from fedsim.protocol import codec
from fedsim.protocol import messages as m
from fedsim.protocol.limits import check_size, max_message_bytes, max_models
from fedsim.protocol.run_config import RunConfig
from fedsim.scenario import Scenario


def scenario(**sections):
    corpus = {"kind": "voices", "group_by": "speaker", "population": {"speakers": 4}}
    said = {"name": "x", "model": {"id": "m"}, "corpus": corpus, "clients": {"budget_mb": 1}}
    return Scenario.model_validate({**said, "methods": ["myqasr"], **sections})


PLAIN = m.SenseRequest("median")
NOISY = {"privacy": {"release": "noisy", "rounds": 2, "delta": 1e-5}}
OTHERS = {"methods": [{"allocation": "myqasr", "tuned_on": ["own", "other"]}]}


@pytest.mark.parametrize(
    ("request_", "granted", "said"),
    [
        (replace(PLAIN, quantiles=True), {"study": True}, "quantiles, .* study: true"),
        (m.Evaluation(True, (), clip_counts=True), {"study": True}, "each clip, .* study: true"),
        (replace(PLAIN, workload=True), {"fleet": {"trace": "t.csv"}}, "workload, .* no fleet"),
        (
            m.Evaluation(True, (), workload=True),
            {"fleet": {"trace": "t.csv"}},
            "workload, .* no fleet",
        ),
        (m.Delivery(True, ()), OTHERS, "activation ranges, .* another client's clips"),
        (replace(PLAIN, round=2), NOISY, "round 2, .* rounds 1 to 1"),
        (
            m.SenseRequest("std"),
            {"quantization": {"sensitivity": "std"}},
            "measure 'std', .* 'median'",
        ),
        (
            wire.Post("std", (), (), (), ()),
            {"quantization": {"sensitivity": "std"}},
            "measure 'std', .* 'median'",
        ),
    ],
)
def test_a_device_gives_what_its_scenario_says(request_, granted, said):
    check_request(scenario(**granted), "ann", request_)
    with pytest.raises(FedsimError, match=f"client 'ann' refuses: .*{said}"):
        check_request(scenario(), "ann", request_)


@pytest.mark.parametrize("number", [-3, 0, 3, 1001])
def test_rounds_that_the_scenario_does_not_have(number):
    for good in (1, 2):
        check_request(scenario(**NOISY), "ann", replace(PLAIN, round=good))
    with pytest.raises(FedsimError, match=f"round {number}, .* rounds 1 to 2"):
        check_request(scenario(**NOISY), "ann", replace(PLAIN, round=number))


def test_a_device_that_knows_itself_alone_takes_models_of_many_others():
    """`tuned_on: each` sends a model a client, and a device of a deployment has only its own."""
    methods = {"methods": [{"allocation": "myqasr", "tuned_on": ["own", "each"]}]}
    own = scenario(methods=[{"allocation": "myqasr", "tuned_on": ["own"]}])
    layers = 25
    candidate = m.Candidate(
        "myqasr/minmax", "minmax", "c", (4,) * layers, bytes(32 * layers), (0.1,) * 2 * layers
    )
    record = codec.to_record(m.Evaluation(True, (candidate,) * 100))
    check_size(
        m.Evaluation,
        record,
        max_message_bytes(m.Evaluation, layers, models=max_models(scenario(**methods))),
        "the server",
    )
    most = max_message_bytes(m.Evaluation, layers, models=max_models(own))
    with pytest.raises(FedsimError, match="refused unread"):
        check_size(m.Evaluation, record, most, "the server")


def test_every_message_of_the_server_is_looked_at(study, tmp_path):
    """A device reads none without the check, and a sound one as it is."""
    open_runtime.cache_clear()
    runtime = open_runtime(RunConfig(study.scenario.model_dump_json(), tmp_path / "run"))
    device = Device(runtime, runtime.clients["ann"])
    for message in (replace(PLAIN, round=2), m.Evaluation(True, (), clip_counts=True)):
        sent = SimpleNamespace(content=codec.to_record(message))
        with pytest.raises(FedsimError, match="client 'ann' refuses"):
            device.read(type(message), sent)
    sent = SimpleNamespace(content=codec.to_record(PLAIN))
    assert device.read(m.SenseRequest, sent) == PLAIN
    open_runtime.cache_clear()
