"""Own tokens of a device: in its file, in nothing that it sends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import toys
import vocabulary_toys
from fedsim_clients.device import Device
from fedsim_clients.runtime import open_runtime
from fedsim_server.planner import Planner

from fedsim.errors import FedsimError
from fedsim.protocol import messages as m
from fedsim.protocol.run_config import RunConfig
from fedsim.quant import modelfile
from fedsim.quant.bank import LayerBank
from fedsim.scenario import load_scenario
from fedsim.speech.public_model import PublicModel


@pytest.fixture
def device(tmp_path):
    """A device that rounds its own model, which others test."""
    model = vocabulary_toys.save(tmp_path / "whisper")
    (tmp_path / "words.txt").write_text("casa")
    toys.write_corpus(tmp_path / "clips", ["ann", "bob"], each=4, languages=["it"])
    file = toys.write_scenario(
        tmp_path / "toy.yaml",
        model={"id": str(model), "vocabulary": {"words": 1, "own": 4, "words_from": "words.txt"}},
        corpus={"path": "clips", "group_by": "speaker", "tuning_clips": 2, "test_clips": 2},
        clients={"budget_mb": 0.075},
        quantization={"rounding": "compensated", "moments": "own"},
        methods=[{"allocation": "myqasr", "calibration": "minmax", "tuned_on": ["own", "each"]}],
        save_models=True,
    )
    open_runtime.cache_clear()
    runtime = open_runtime(RunConfig(load_scenario(file).model_dump_json(), tmp_path / "run"))
    yield Device(runtime, runtime.clients["ann"])
    open_runtime.cache_clear()


@pytest.fixture
def planner(device):
    runtime = device.runtime
    weights, layers = runtime.study.switch.full_weights(), runtime.model.layers
    bank = LayerBank(weights, layers, runtime.study.weight_format, runtime.weights.store)
    public = PublicModel(runtime.model, lambda: pytest.fail("no public clips are needed"), 1)
    full = runtime.study.switch.full_bytes()
    sizes = runtime.study.sizes
    return Planner(runtime.scenario, sizes, bank, public, full, trimmed=runtime.trimmed)


def test_own_rows_are_in_the_file_only(device, planner):
    summary = device.sense(m.SenseRequest("median"))
    assert summary.language == "it"
    (candidate,) = planner.own(summary)
    receipt = device.personalize(m.Delivery(True, (candidate,)))
    layers = device.runtime.model.layers
    default = device.runtime.trimmed.of("it").rows
    (path,) = (device.runtime.run_dir / "models").iterdir()
    file = modelfile.read(path, layers)
    assert file.rows.count == default.count
    assert file.rows.key != default.key
    assert receipt.file_bytes == (path.stat().st_size,)
    # What others are sent of that layer has the rows that the server would choose.
    at = [layer.name for layer in layers].index(default.layer)
    name = planner.bank.name(at, candidate.bits[at], candidate.rounding, default)
    assert receipt.blobs[32 * at : 32 * (at + 1)].hex() == name


def test_language_is_missing(device, planner):
    summary = replace(device.sense(m.SenseRequest("median")), language="")
    with pytest.raises(FedsimError, match=r"client 'ann': .*none is given; give the clips a lang"):
        planner.own(summary)
