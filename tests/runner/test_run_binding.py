"""What a run is bound to: packages that its scenario needs, and the contents of its files."""

import hashlib
import json
import os

import pytest
import torch
from huggingface_hub import constants

from fedsim.errors import FedsimError
from fedsim.results.folder import create_run
from fedsim.results.ledger import Ledger
from fedsim.results.records import Log, Release
from fedsim.runner.binding import bind, relevant_versions
from fedsim.runner.contents import Contents, places
from fedsim.runner.result_key import ResultKeys
from fedsim.scenario import Scenario

BASE = {
    "name": "bound",
    "model": {"id": "org/model"},
    "corpus": {"path": "org/clips", "group_by": "speaker"},
    "clients": {"budget_mb": 40.0},
    "methods": ["fp32"],
    "quantization": {"public_clips": {"path": "org/public", "group_by": "speaker"}},
}


def scenario(**sections):
    return Scenario.model_validate({**BASE, **sections})


def test_packages_on_which_results_depend():
    always = {"fedsim", "torch", "transformers", "numpy"}
    assert set(relevant_versions(scenario())) == always
    voices = {"kind": "voices", "population": {"speakers": 2}, "group_by": "speaker"}
    assert set(relevant_versions(scenario(corpus=voices))) == {*always, "espeakng-loader"}
    synthetic = scenario(quantization={})  # its public clips are synthetic
    assert set(relevant_versions(synthetic)) == {*always, "espeakng-loader"}
    chosen = scenario(model={"id": "org/model", "vocabulary": {"words": 10}})
    assert set(relevant_versions(chosen)) == {*always, "wordfreq"}
    assert set(relevant_versions(scenario(rare_beyond=1_000))) == {*always, "wordfreq"}


def test_contents_against_hashlib(tmp_path):
    files = {"b.txt": b"b", "a/c.bin": b"", "a/d/e.wav": os.urandom(300_000)}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = dict(Contents().files(str(tmp_path)))
    assert found == {name: hashlib.sha256(content).digest() for name, content in files.items()}
    assert Contents().files(str(tmp_path / "b.txt")) == ((".", hashlib.sha256(b"b").digest()),)
    assert Contents().digest("org/model") == Contents(read=False).digest(str(tmp_path)) == ""


def test_a_pipe_among_the_clips_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "clip.wav")
    with pytest.raises(FedsimError, match=r"clip\.wav cannot be read \(it is not a regular file\)"):
        Contents().digest(str(tmp_path))


def test_bundled_models_are_files_too():
    chosen = scenario(model={"id": "bundled:keywords"})
    names = dict(Contents().files(places(chosen)["model.id"]))
    assert {"config.json"} <= set(names)


def test_results_without_a_scenario_are_not_gone_on_with(tmp_path):
    folder = create_run(tmp_path / "run", scenario())
    with Ledger(folder.ledger) as ledger:
        ledger.finish_client("ann", [])
        with pytest.raises(FedsimError, match="has results, but not of which scenario"):
            bind(ledger, folder, scenario(), Contents())


def test_a_run_goes_on_on_the_device_on_which_it_began(tmp_path):
    """Begun on a card that this machine does not have."""
    folder = create_run(tmp_path / "run", scenario())
    assert json.loads(folder.versions.read_text())["device"] == "cpu"
    card = "cuda (NVIDIA A100-SXM4-40GB, compute capability 8.0, CUDA 13.0, cuDNN 91900)"
    with Ledger(folder.ledger) as ledger:
        bind(ledger, folder, scenario(), Contents())
        begun = {**ledger.facts("package"), "device": card}
        ledger.put_facts({"package": begun.items()})
        with pytest.raises(FedsimError, match=r"begun on the device cuda \(NVIDIA A100.* is cpu: "):
            bind(ledger, folder, scenario(), Contents())


def test_a_device_that_is_not_there_stops_a_run_before_it_has_a_folder(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA GPU")
    with pytest.raises(FedsimError, match=r"engine\.device is 'cuda', but torch .* finds cpu here"):
        create_run(tmp_path / "run", scenario(engine={"device": "cuda"}))
    assert not (tmp_path / "run").exists()


def test_a_budget_that_is_gone_is_not_a_new_one(tmp_path, monkeypatch):
    """The ledger knows that clients have spent, though the file and its marker are gone."""
    monkeypatch.delenv("FEDSIM_PRIVACY_DIR", raising=False)
    folder = create_run(tmp_path / "run", scenario())
    with Ledger(folder.ledger) as ledger:
        bind(ledger, folder, scenario(), Contents())
        ledger.write(Log([Release("ann", "sense", "up", "payload", 8)]))
        bind(ledger, folder, scenario(), Contents())
        ledger.write(Log([Release("ann", "sense", "up", "payload", 8, 0.5)]))
        with pytest.raises(
            FedsimError, match=r"privacy\.sqlite: the clients have spent .* is gone"
        ):
            bind(ledger, folder, scenario(), Contents())
        monkeypatch.setenv("FEDSIM_PRIVACY_DIR", str(tmp_path))  # where devices have their own
        bind(ledger, folder, scenario(), Contents())


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """f(kind, id, file, commit): the hub's cache holds a repository at this commit; no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(kind, name, file, commit):
        home = tmp_path / "hub" / f"{kind}s--{name.replace('/', '--')}"
        for place, text in ((home / "refs" / "main", commit), (home / file, "{}")):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        snapshot = home / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (home / file).rename(snapshot / file)

    return put


def test_what_lies_on_the_hub_is_bound_by_its_commit(hub, tmp_path):
    first, second = "a" * 40, "b" * 40
    hub("model", "org/model", "config.json", first)
    hub("dataset", "org/clips", "README.md", first)
    run = create_run(tmp_path / "run", scenario())
    with Ledger(run.ledger) as ledger:
        bind(ledger, run, scenario(), Contents())
        bind(ledger, run, scenario(), Contents())  # nothing has changed
        hub("dataset", "org/clips", "README.md", second)
        sentence = rf"org/clips of the hub has another commit than {first} \(corpus\.path\)"
        with pytest.raises(FedsimError, match=sentence):
            bind(ledger, run, scenario(), Contents())
        hub("dataset", "org/public", "README.md", second)  # was not known when the run began
        (tmp_path / "hub" / "datasets--org--clips" / "refs" / "main").write_text(first)
        bind(ledger, run, scenario(), Contents())


def test_another_commit_is_another_result(hub):
    hub("model", "org/model", "config.json", "a" * 40)
    method = scenario().methods[0]
    keys = [ResultKeys().key(scenario(), method), ResultKeys().key(scenario(), method)]
    hub("model", "org/model", "config.json", "b" * 40)
    keys.append(ResultKeys().key(scenario(), method))
    assert keys[0] == keys[1] != keys[2]
