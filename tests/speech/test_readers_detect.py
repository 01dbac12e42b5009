"""Which layout a path has, and what is said where it has none, or several."""

from __future__ import annotations

from pathlib import Path

import datasets
import layout_toys as toy
import pytest
import toys
from entries import added

from fedsim.errors import FedsimError
from fedsim.scenario.clients import ClientSettings
from fedsim.scenario.corpus import CorpusSettings
from fedsim.scenario.readers import READERS, CorpusReader
from fedsim.speech.clips import ClientData, Clients, Utterance, read_utterance
from fedsim.speech.corpus import open_clients
from fedsim.speech.readers import detect, read_recordings
from fedsim.speech.readers.guide import with_table


def settings(path, **options) -> CorpusSettings:
    return CorpusSettings(path=str(path), **{"group_by": "speaker", **options})


def test_a_name_that_no_folder_has_is_a_data_set_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert detect("openslr/librispeech_asr") == detect("librispeech_asr") == "hub"
    for path in (tmp_path / "nowhere", "./nowhere", "a/b/c"):
        with pytest.raises(
            FedsimError, match=r"corpus.path \S+ is not a folder .*; check the path"
        ):
            detect(path)
    toys.write_corpus(tmp_path / "openslr/librispeech_asr", each=1)
    assert detect("openslr/librispeech_asr") == "folder"


def test_a_folder_of_parquet_is_a_data_set(tmp_path):
    (tmp_path / "data/clean").mkdir(parents=True)
    (tmp_path / "data/clean/test-00000-of-00001.parquet").write_bytes(b"PAR1")
    assert detect(tmp_path / "data") == "hub"


def test_what_has_no_layout_is_refused_with_what_was_looked_for(tmp_path):
    toy.sound(tmp_path / "a.wav", 1)
    with pytest.raises(FedsimError) as caught:
        detect(tmp_path)
    sentence = str(caught.value)
    assert "has no layout that is known and no metadata.csv; write one" in sentence
    for name in READERS:
        if READERS[name].recognizes:
            assert f"{name}: {READERS[name].sign}" in sentence
    with pytest.raises(FedsimError, match="no layout that is known"):
        detect(tmp_path / "a.wav")


def test_two_layouts_in_one_folder_are_refused(tmp_path):
    root = toy.librispeech(tmp_path) / "test-clean"
    (root / "metadata.csv").write_text("file_name,speaker\na.wav,ann\n")
    with pytest.raises(FedsimError, match=r"several layouts, folder and librispeech; say which"):
        detect(root)
    kind = read_recordings(settings(root, kind="librispeech"))
    assert len(kind.utterances) == 12


def test_a_setting_that_the_layout_does_not_take(tmp_path):
    toys.write_corpus(tmp_path / "clips", each=1)
    corpus = settings(tmp_path / "clips", config="clean")
    with pytest.raises(FedsimError, match=r"of kind 'folder', which takes no config: remove"):
        open_clients(corpus, ClientSettings(), 0)


def test_a_named_kind_on_another_layout(tmp_path):
    root = toys.write_corpus(tmp_path / "clips", each=1)
    for kind in ("common_voice", "fleurs", "mls", "voxpopuli"):
        with pytest.raises(FedsimError, match=rf"has not the layout '{kind}'.* or auto"):
            read_recordings(settings(root, kind=kind))
    for kind in ("librispeech", "speech_commands", "kaldi", "nemo", "lhotse"):
        with pytest.raises(FedsimError):
            read_recordings(settings(root, kind=kind))


def test_auto_opens_the_layout_of_a_plug_in(tmp_path):
    (tmp_path / "ann_yes.house").write_bytes(b"")

    def open_(corpus, seed):
        return Clients(["ann"], lambda key: ClientData(key, (Utterance("a", tmp_path),), ()))

    entry = CorpusReader(
        open_,
        summary="Files of the house.",
        recognizes=lambda path: any(path.glob("*.house")),
        sign="files that end with .house",
    )
    with added(READERS, "house", entry):
        assert detect(tmp_path) == "house"
        assert list(open_clients(settings(tmp_path), ClientSettings(), 0)) == ["ann"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def test_kind_hub_reads_a_folder_of_recordings_without_torchcodec(home):
    root = toys.write_corpus(home / "clips", each=2)
    corpus = settings(root, kind="hub", columns={"audio": "audio"}, split="train")
    opened = open_clients(corpus, ClientSettings(), 0)
    assert list(opened) == list(toys.SPEAKERS)
    for client in opened.values():
        for clip in (*client.tuning, *client.test):
            assert read_utterance(clip).size > 0
    assert any("'folder': read as such" in note for note in opened.found.notes)


def test_kind_hub_takes_the_folder_of_a_split_as_datasets_does(home):
    rows = []
    for split in ("train", "test"):
        for i in range(3):
            toy.sound(home / "clips" / split / f"{i}.wav", i)
            rows.append({"file_name": f"{split}/{i}.wav", "speaker": "ann", "text": split})
    toys.write_metadata(home / "clips", rows)
    found = read_recordings(settings(home / "clips", kind="hub"))
    assert {u.text for u in found.utterances} == {"test"}


def test_kind_hub_on_a_folder_in_no_layout_shows_the_root_cause(home):
    """`datasets` says only that an error occurred; the cause is further down the chain."""
    for i in range(2):
        toy.sound(home / "clips" / "ann" / f"{i}.wav", i)
    with pytest.raises(FedsimError) as caught:
        read_recordings(settings(home / "clips", kind="hub", split="train"))
    sentence = str(caught.value)
    assert "cannot be loaded: " in sentence
    assert "error occurred" not in sentence
    assert "network" not in sentence
    assert "\n" not in sentence


def test_an_id_of_the_hub_that_cannot_be_had_says_that_no_folder_has_its_name(home):
    with pytest.raises(FedsimError, match=r"cannot be loaded: .*network; there is no folder of"):
        read_recordings(settings("nobody/nothing-at-all"))


def test_the_guide_has_a_row_for_every_layout():
    """Between its marks stands what the registry says: `python -m fedsim.speech.readers.guide`."""
    guide = (Path(__file__).parents[2] / "docs/recordings.md").read_text(encoding="utf-8")
    assert with_table(guide) == guide
    for name in READERS:
        if READERS[name].recognizes:
            assert f"| `{name}` | {READERS[name].summary} |" in guide
            assert len(READERS[name].unsupported) > 10
    for kind in ("librispeech", "common_voice"):
        assert f"scenarios/{kind}_folder.yaml" in guide
