"""Scenarios on recordings as they are downloaded: the examples run, the paper's studies open, and a
run is bound to the files that its reader reads."""

from __future__ import annotations

from pathlib import Path

import layout_toys as toy
import pytest
import yaml

from fedsim.cli import main
from fedsim.errors import FedsimError
from fedsim.results.folder import create_run
from fedsim.results.ledger import Ledger
from fedsim.runner.binding import bind
from fedsim.runner.contents import Contents, places
from fedsim.runner.single import run_scenario
from fedsim.scenario import load_scenario
from fedsim.speech.corpus import open_clients

SCENARIOS = Path(__file__).parents[2] / "scenarios"
SMALL = ["engine={kind: inprocess}", "corpus.tuning_clips=2", "corpus.test_clips=1"]


def opened(name, path, *overrides):
    scenario = load_scenario(SCENARIOS / name, [f"corpus.path={path}", *overrides])
    return open_clients(scenario.corpus, scenario.clients, scenario.seed)


def test_the_example_of_a_librispeech_folder(tmp_path, model_folder):
    root = toy.librispeech(tmp_path)
    file = SCENARIOS / "librispeech_folder.yaml"
    model = [f"model.id={model_folder('ctc-group')}", "clients.budget_mb=0.05"]
    scenario = load_scenario(file, [f"corpus.path={root}", *model, *SMALL])
    result = run_scenario(scenario, tmp_path / "run")
    assert {row.client for row in result.rows} == set(toy.LIBRISPEECH)


def test_the_example_of_a_common_voice_folder(tmp_path, model_folder):
    root = toy.common_voice(tmp_path)
    file = SCENARIOS / "common_voice_folder.yaml"
    model = [f"model={{id: {model_folder('whisper')}}}", "clients.budget_mb=0.2"]
    scenario = load_scenario(file, [f"corpus.path={root / 'en'}", *model, *SMALL])
    result = run_scenario(scenario, tmp_path / "run")
    assert {row.client for row in result.rows} == {"female", "male"}


@pytest.mark.parametrize("name", ["librispeech_folder", "common_voice_folder"])
def test_examples_without_their_recordings_say_so(name, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["validate", str(SCENARIOS / f"{name}.yaml")]) == 1
    assert "corpus.path: there is no " in capsys.readouterr().err


LIBRISPEECH_STUDIES = sorted(
    path.name
    for path in (SCENARIOS / "paper").glob("*.yaml")
    if "librispeech_asr" in path.read_text()
)


@pytest.mark.parametrize("name", LIBRISPEECH_STUDIES)
def test_the_papers_studies_of_gender_open_a_folder_of_openslr(tmp_path, name):
    root = toy.librispeech(tmp_path)
    found = opened(f"paper/{name}", root, "corpus.tuning_clips=2", "corpus.test_clips=4")
    assert list(found) == ["female", "male"]
    assert {u.speaker for u in found["female"].test} <= {"121", "237"}
    assert {len(c.test) for c in found.values()} == {4}


def test_the_papers_study_of_speakers_opens_a_folder_of_google(tmp_path):
    root = toy.speech_commands(tmp_path)
    few = ("corpus.tuning_clips=2", "corpus.test_clips=4", "clients.min_clips=6")
    found = opened("paper/speaker.yaml", root, *few)
    assert list(found) == [toy.HASHES[0]]
    assert {u.text for u in found[toy.HASHES[0]].test} <= set(toy.COMMANDS)


def test_the_papers_study_of_languages_opens_a_folder_of_google(tmp_path):
    text = (SCENARIOS / "paper/language.yaml").read_text()
    configs = yaml.safe_load(text)["corpus"]["config"]
    root = toy.fleurs(tmp_path, tuple(configs.values()))
    found = opened("paper/language.yaml", root, "corpus.tuning_clips=2", "corpus.test_clips=2")
    assert list(found) == sorted(configs)
    assert {key: client.language for key, client in found.items()} == {k: k for k in configs}


def test_validate_says_what_was_found(tmp_path, capsys):
    root = toy.librispeech(tmp_path)
    words = ["validate", str(SCENARIOS / "librispeech_folder.yaml"), "--set"]
    assert main([*words, f"corpus.path={root}"]) == 0
    out = capsys.readouterr().out
    assert f"corpus: librispeech (found by auto) at {root}: 12 clips, 4 speakers, hours not" in out


@pytest.fixture
def common_voice(tmp_path):
    """A scenario on the split `validated` of Common Voice: two of its twelve clips."""
    root = toy.common_voice(tmp_path)
    overrides = [f"corpus.path={root / 'en'}", "corpus.split=validated", "model.id=org/model"]
    return root / "en", load_scenario(SCENARIOS / "common_voice_folder.yaml", overrides)


def test_a_run_is_bound_to_what_its_reader_reads(tmp_path, common_voice):
    root, scenario = common_voice
    contents = Contents()
    names = [n for n, _ in contents.files(places(scenario, contents)["corpus.path"])]
    clips = [f"clips/common_voice_en_{n}.mp3" for n in (17000000, 17000001)]
    assert names == [*clips, "validated.tsv"]
    folder = create_run(tmp_path / "run", scenario)
    with Ledger(folder.ledger) as ledger:
        bind(ledger, folder, scenario, Contents())
        (root / "clips/common_voice_en_17000100.mp3").unlink()  # of another split
        bind(ledger, folder, scenario, Contents())
        table = root / "validated.tsv"
        table.write_text(table.read_text().replace("Hello", "Hallo"))
        with pytest.raises(FedsimError, match=r"en/validated.tsv was changed \(corpus.path\)"):
            bind(ledger, folder, scenario, Contents())


def test_a_run_is_bound_to_recordings_that_lie_elsewhere(tmp_path):
    """A manifest names them; its own folder does not hold them."""
    root, _ = toy.kaldi(tmp_path)
    overrides = [f"corpus.path={root}", "corpus.split=test", "model.id=org/model"]
    scenario = load_scenario(SCENARIOS / "librispeech_folder.yaml", overrides)
    before = Contents().digest(places(scenario, Contents())["corpus.path"])
    toy.sound(tmp_path / "downloads/rec1.wav", 9, 2.0)
    assert Contents().digest(places(scenario, Contents())["corpus.path"]) != before


def test_speakers_above_the_part_are_bound_too(tmp_path):
    root = toy.librispeech(tmp_path)
    overrides = [f"corpus.path={root}/test-clean", "model.id=org/model"]
    scenario = load_scenario(SCENARIOS / "librispeech_folder.yaml", overrides)
    contents = Contents()
    names = [n for n, _ in contents.files(places(scenario, contents)["corpus.path"])]
    assert names[0] == "../SPEAKERS.TXT"
    assert len(names) == 1 + 4 + 12
