"""The method is written once: `personalize` and a run give equal model files, byte for byte."""

from __future__ import annotations

import paper
import pytest
import toys
from fedsim_clients.saving import model_name

from fedsim import load_personalized, personalize
from fedsim.results.folder import read_results
from fedsim.results.ledger import Ledger
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario
from fedsim.speech.clips import read_utterance
from fedsim.speech.corpus import open_clients
from fedsim.speech.public import public_request, public_set

CALIBRATIONS = ("minmax", "cosine", "hessian", "none", "dynamic", "float")
BUDGETS_MB = {"ctc-group": 0.0334, "whisper": 0.075}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Clips of one English and one Italian speaker."""
    folder = tmp_path_factory.mktemp("personal") / "clips"
    return toys.write_corpus(folder, speakers=("ann", "bob"), languages=("en", "it"))


@pytest.mark.parametrize(
    "granularity", ["per_channel", pytest.param("per_tensor", marks=pytest.mark.slow)]
)
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


@pytest.mark.parametrize("losses", ["public", "own"])
def test_both_round_alike_on_whose_moments_ever(model_folder, speech, tmp_path, losses):
    """Plans by losses and compensated rounding, on the server (public) and on the device."""
    folder = toys.write_corpus(tmp_path / "clips", speakers=("ann", "bob"), languages=("en",))
    public = {"path": str(folder), "group_by": "speaker", "tuning_clips": 2, "test_clips": 1}
    scenario = load_scenario(
        toys.write_scenario(
            tmp_path / "toy.yaml",
            model={"id": str(model_folder("ctc-group"))},
            corpus={**public, "tuning_clips": 3},
            clients={"budget_mb": 0.025},
            quantization={
                "rounding": "compensated",
                "weights": {"group": 32},
                "zero_points": True,
                "losses": losses,
                "public_clips": public,
                "public_count": 8,
                "activations": "dynamic",
            },
            methods=[{"allocation": "knapsack", "moments": ["public", "own", "blend"]}],
            save_models=True,
        )
    )
    result = run_scenario(scenario, tmp_path / "run")
    assert result.failures == []
    clips = public_set(public_request(n_clips=8, corpus=scenario.quantization.public_clips)).clips
    files = set()
    for key, client in open_clients(scenario.corpus, scenario.clients, scenario.seed).items():
        for moments, label in (("public", "/public"), ("own", "/own"), ("blend", "")):
            model = personalize(
                speech("ctc-group"),
                [read_utterance(utterance) for utterance in client.tuning],
                budget_mb=0.025,
                weights="group_32",
                losses=losses,
                moments=moments,
                calibration=scenario.methods[0].calibration[0],
                public_clips=[one.clip for one in clips],
                language=client.language,
            )
            model.save(tmp_path / "personal.safetensors")
            file = result.folder.models / model_name(key, f"knapsack/dynamic{label}")
            assert file.read_bytes() == (tmp_path / "personal.safetensors").read_bytes(), label
            files.add(file.read_bytes())
    # Each client has a model of its own, but for plans and rounding on public clips.
    assert len(files) == (5 if losses == "public" else 6)
    with Ledger(result.folder.ledger) as ledger:
        down = {r.field for r in ledger.all_releases() if r.direction == "down"}
        up = {r.field: r.bytes for r in ledger.all_releases() if r.direction == "up"}
    assert {"full-precision model", "public clips", "model knapsack/dynamic/public"} <= down
    assert "model knapsack/dynamic" not in down
    assert up["blobs"] == up["ranges"] == 0  # nothing of what the device rounded
