"""Packed layers in messages: each device gets each once, and reads nothing of the server's disk."""

from __future__ import annotations

import pytest
from fedsim_server.app import app
from fedsim_server.sent_layers import SentLayers
from flwr.app import Context, RecordDict

from fedsim.engine import EngineSettings, open_grid
from fedsim.protocol import messages as m
from fedsim.quant.bank import BlobStore
from fedsim.results.folder import RunFolder
from fedsim.results.ledger import Ledger
from fedsim.runner.single import CLIENT_APP

SPEAKERS = ["ann", "bob", "cyd", "dee", "eve"]


def candidate(*names):
    blobs = b"".join(bytes.fromhex(name) for name in names)
    return m.Candidate("one", "minmax", "ann", (4,) * len(names), blobs, (8,) * len(names))


def test_each_layer_goes_to_each_device_once(tmp_path):
    store = BlobStore(tmp_path)
    packed = [bytes([i]) * (i + 1) for i in range(3)]
    a, b, c = (store.put(layer) for layer in packed)
    sent = SentLayers(store)
    assert sent.layers_to_send(1, [candidate(a, b), candidate(b, a)]) == (packed[0], packed[1])
    assert sent.layers_to_send(1, [candidate(a, b)]) == ()
    assert sent.layers_to_send(1, [candidate(c, b)]) == (packed[2],)
    assert sent.layers_to_send(2, [candidate(c, b)]) == (packed[2], packed[1])
    # What a device keeps of it is found under the names that its candidates say.
    device = BlobStore(tmp_path / "device")
    assert [device.put(layer) for layer in packed] == [a, b, c]


@pytest.mark.parametrize("methods", ["own", "others"])
def test_devices_that_do_not_see_the_bank(study, tmp_path, methods):
    """They test their own models, and in a study those of others: all layers arrive in messages."""
    file = study.file
    if methods == "own":
        chosen = study.scenario.model_copy(
            update={
                "methods": tuple(
                    method.model_copy(update={"tuned_on": ("own",)}) if method.tuned_on else method
                    for method in study.scenario.methods
                    if set(method.tuned_on) <= {"own"}
                ),
                "save_models": False,
            }
        )
        file = tmp_path / "own.yaml"
        file.write_text(chosen.to_yaml())
    config = {"scenario": str(file), "out": str(tmp_path / "run")}
    apart = config | {"out": str(tmp_path / "devices")}
    with open_grid("inprocess", CLIENT_APP, SPEAKERS, apart, EngineSettings()) as grid:
        context = Context(
            run_id=7, node_id=1, node_config={}, state=RecordDict(), run_config=config
        )
        app(grid, context)
    made = RunFolder(tmp_path / "run")
    assert not made.path.joinpath("bank").exists()
    assert any((tmp_path / "devices/bank").iterdir())
    with Ledger(made.ledger) as ledger, Ledger(study.result.folder.ledger) as expected:
        assert not ledger.failures()
        rows = {(r.client, r.method, r.tuned_on): r for r in expected.rows()}
        assert ledger.rows()
        assert all(rows[r.client, r.method, r.tuned_on] == r for r in ledger.rows())
        # A model counts as the bytes of its file, however its layers came.
        fields = {release.field for release in ledger.all_releases()}
        assert "layers" not in fields
        assert any(field.startswith("model ") for field in fields)
