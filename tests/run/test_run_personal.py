"""The method is written once: `personalize` and a run give equal model files, byte for byte."""

from __future__ import annotations

import paper
import pytest
import toys
from fedsim_clients.device import model_name

from fedsim import load_personalized, personalize
from fedsim.results.folder import read_results
from fedsim.run.single import run_scenario
from fedsim.scenario import load_scenario
from fedsim.speech.clips import read_utterance
from fedsim.speech.corpus import open_clients

CALIBRATIONS = ("minmax", "cosine", "hessian", "none", "dynamic", "float")
BUDGETS_MB = {"ctc-group": 0.0334, "whisper": 0.075}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Clips of one English and one Italian speaker."""
    folder = tmp_path_factory.mktemp("personal") / "clips"
    return toys.write_corpus(folder, speakers=("ann", "bob"), languages=("en", "it"))


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("name", list(BUDGETS_MB))
def test_personalize_and_a_run_write_the_same_file(
    model_folder, speech, corpus, tmp_path, name, granularity
):
    allocations = [("myqasr", calibration) for calibration in CALIBRATIONS]
    allocations.append(("uniform", "minmax"))
    scenario = load_scenario(
        toys.write_scenario(
            tmp_path / "toy.yaml",
            model={"id": str(model_folder(name)), "batch_size": 4},
            corpus={
                "path": str(corpus),
                "group_by": "speaker",
                "tuning_clips": 3,
                "test_clips": 1,
            },
            clients={"budget_mb": BUDGETS_MB[name]},
            quantization={**paper.QUANTIZATION, "weights": granularity, "activation_bits": 8},
            methods=[
                {"allocation": "myqasr", "calibration": list(CALIBRATIONS)},
                {"allocation": "uniform", "calibration": "minmax"},
            ],
            save_models=True,
        )
    )
    result = run_scenario(scenario, tmp_path / "run")
    assert result.failures == []
    clients = open_clients(scenario.corpus, scenario.clients, scenario.seed)
    assert [client.language for client in clients.values()] == ["en", "it"]
    for key, client in clients.items():
        clips = [read_utterance(utterance) for utterance in client.tuning]
        for allocation, calibration in allocations:
            model = personalize(
                speech(name),
                clips,
                budget_mb=BUDGETS_MB[name],
                allocation=allocation,
                calibration=calibration,
                rounding="nearest",
                weights=granularity,
                zero_points=False,
                language=client.language,
            )
            model.save(tmp_path / "personal.safetensors")
            ours = (tmp_path / "personal.safetensors").read_bytes()
            file = result.folder.models / model_name(key, f"{allocation}/{calibration}")
            assert file.read_bytes() == ours, (key, allocation, calibration)
            assert load_personalized(file).language == client.language
    sizes = {row.file_bytes for row in read_results(result.folder.results)}
    assert sizes == {file.stat().st_size for file in result.folder.models.iterdir()}
