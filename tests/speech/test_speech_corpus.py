"""Corpora: metadata in every state, groups, and a split that depends on a client alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import soundfile
import toys
from entries import added
from pydantic import ValidationError

from fedsim.base.seeds import client_rng
from fedsim.errors import AudioError, FedsimError
from fedsim.scenario.clients import ClientSettings
from fedsim.scenario.corpus import READERS, CorpusReader, CorpusSettings
from fedsim.speech.clips import ClientData, Clients, Utterance, read_utterance
from fedsim.speech.corpus import open_clients
from fedsim.speech.eligible import require_clips
from fedsim.speech.readers import read_recordings


@pytest.fixture
def folder(tmp_path):
    """Return a function that makes a corpus of a metadata.csv as given; no audio is needed."""

    def make(text: str | bytes) -> Path:
        data = text.encode() if isinstance(text, str) else text
        (tmp_path / "metadata.csv").write_bytes(data)
        return tmp_path

    return make


def settings(path, **options) -> CorpusSettings:
    return CorpusSettings(**{"path": str(path), "group_by": "speaker", **options})


def utterances(path, **options):
    corpus = settings(path, **options)
    return read_recordings(corpus).utterances


def clients(path, seed=0, select=None, limit=None, **options):
    chosen = ClientSettings(budget_mb=1, select=select, limit=limit)
    return open_clients(settings(path, **options), chosen, seed)


def listing(speakers, each, columns="file_name,speaker,text"):
    rows = [f"{s}{i}.wav,{s},words {i}" for s in speakers for i in range(each)]
    return "\n".join([columns, *rows]) + "\n"


def test_every_column(folder):
    root = folder(
        "file_name,speaker,gender,language,text\na/1.wav,ann,female,en,Hello you\n2.wav,bob,,it,\n"
    )
    assert utterances(root) == [
        Utterance("a/1.wav", root / "a/1.wav", "Hello you", "ann", "female", "en"),
        Utterance("2.wav", root / "2.wav", None, "bob", None, "it"),
    ]


def test_a_subset_of_columns_in_any_order(folder):
    cells = {"speaker": "ann", "file_name": "1.wav", "x": "ignored"}
    for order in (
        ["speaker", "file_name"],
        ["file_name", "speaker"],
        ["speaker", "x", "file_name"],
    ):
        root = folder(f"{','.join(order)}\n{','.join(cells[name] for name in order)}\n")
        assert utterances(root) == [Utterance("1.wav", root / "1.wav", speaker="ann")]


def test_a_file_from_a_spreadsheet(folder):
    """A byte order mark, Windows line ends, quoted commas and line breaks, letters of any kind."""
    text = '\ufefffile_name,speaker,text\r\n1.wav, Zoë ,"well, yes"\r\n2.wav,Ян,"two\nlines"\r\n'
    found = utterances(folder(text))
    assert [(u.speaker, u.text) for u in found] == [("Zoë", "well, yes"), ("Ян", "two\nlines")]


def test_blank_lines_and_short_rows(folder):
    found = utterances(folder("file_name,speaker,text\n\n1.wav,ann,yes\n2.wav\n\n"))
    assert [(u.key, u.speaker, u.text) for u in found] == [
        ("1.wav", "ann", "yes"),
        ("2.wav", None, None),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("file_name,speaker\n1.wav,ann\n1.wav,bob\n", r"metadata.csv:3: '1.wav' is listed twice"),
        ("file_name,speaker\n1.wav,ann\n,bob\n", r"metadata.csv:3: .* no file_name; add it"),
        (
            'file_name,speaker,text\n\n1.wav,ann,"a\nb"\n1.wav,bob,c\n',
            r"metadata.csv:5: '1.wav' is listed twice",
        ),
        (
            "filename,speaker\n1.wav,ann\n",
            r"no column 'file_name' for audio: did you mean 'filename'\?; map it",
        ),
        ("", r"no column 'file_name' for audio: known: none; map it under"),
        (
            b"file_name,speaker\n1.wav,Zo\xeb\n",
            r"metadata.csv:2: the file is not UTF-8 text: save it as UTF-8",
        ),
    ],
)
def test_bad_metadata(folder, text, sentence):
    with pytest.raises(FedsimError, match=sentence):
        utterances(folder(text))


def test_no_metadata(tmp_path):
    with pytest.raises(FedsimError, match=r"no metadata.csv; write one with the columns file_name"):
        utterances(tmp_path)
    with pytest.raises(FedsimError, match=r"corpus.path \S+nowhere .*; check the path"):
        utterances(tmp_path / "nowhere")


def test_columns_are_mapped(folder):
    root = folder("path,who,said\n1.wav,ann,yes\n")
    columns = {"audio": "path", "speaker": "who", "text": "said"}
    assert utterances(root, columns=columns) == [
        Utterance("1.wav", root / "1.wav", "yes", speaker="ann")
    ]
    with pytest.raises(FedsimError, match=r"'whom' for speaker: did you mean 'who'\?; map it"):
        utterances(root, columns=columns | {"speaker": "whom"})


def test_an_unknown_group(folder):
    root = folder("file_name,speaker\n1.wav,ann\n")
    with pytest.raises(FedsimError, match=r"no language for any clip; add a column 'language'"):
        clients(root, group_by="language")
    with pytest.raises(FedsimError, match=r"no gender for any clip; .*give corpus.speakers"):
        clients(folder("file_name,gender\n1.wav,\n"), group_by="gender")


def test_clips_of_nobody_are_left_out(folder):
    root = folder("file_name,speaker\n1.wav,ann\n2.wav,\n3.wav,bob\n")
    found = clients(root, test_clips=1, tuning_clips=1)
    assert {key: [u.key for u in c.test] for key, c in found.items()} == {
        "ann": ["1.wav"],
        "bob": ["3.wav"],
    }


@pytest.mark.parametrize("group", ["speaker", "gender", "language"])
def test_groups(folder, group):
    rows = [f"{i}.wav,s{i % 6},{'fm'[i % 2]},{('en', 'it', 'de')[i % 3]}" for i in range(24)]
    root = folder("\n".join(["file_name,speaker,gender,language", *rows]))
    found = clients(root, group_by=group, test_clips=99)
    words = {"f": "female", "m": "male"} if group == "gender" else {}
    read = {u.key: getattr(u, group) for u in utterances(root)}
    expected = {key: words.get(word, word) for key, word in read.items()}
    assert {u.key: key for key, c in found.items() for u in c.test} == expected
    assert list(found) == sorted(set(expected.values()))
    languages = {key: {u.language for u in c.test} for key, c in found.items()}
    for key, client in found.items():
        assert client.language == (
            min(languages[key]) if len(languages[key]) == 1 else None
        )  # of many languages none is the client's


def test_a_split(folder):
    root = folder(listing(["ann", "bob"], 12))
    for client in clients(root, test_clips=5, tuning_clips=4).values():
        tuning, test = ({u.key for u in part} for part in (client.tuning, client.test))
        assert (len(tuning), len(test)) == (4, 5)
        assert not tuning & test
        assert {u.text for u in client.tuning} == {None}  # no label that could be read
        assert all(u.text for u in client.test)
        assert all(u.speaker == client.key for u in client.tuning + client.test)
    few = clients(root, test_clips=10, tuning_clips=10)["ann"]
    assert (len(few.test), len(few.tuning)) == (10, 2)  # test clips first


def test_the_split_is_random_and_seeded(folder):
    root = folder(listing("abcdefgh", 12))
    splits = {}
    for seed in (0, 1):
        found = clients(root, seed=seed, test_clips=5, tuning_clips=4)
        splits[seed] = [[int(u.key[1:-4]) for u in c.test] for c in found.values()]
        assert all(test == sorted(test) for test in splits[seed])
    assert len({tuple(test) for test in splits[0]}) > 4  # not the same numbers for each client
    assert splits[0] != splits[1]
    chosen = np.concatenate([np.ravel(s) for s in splits.values()])
    assert chosen.min() < 3 < 8 < chosen.max()


def keys_of(client: ClientData):
    return [u.key for u in client.tuning], [u.key for u in client.test]


def test_a_split_does_not_depend_on_other_clients(tmp_path):
    all_of_them = tmp_path / "all"
    alone = tmp_path / "alone"
    for path, speakers in ((all_of_them, "dabc"), (alone, "b")):
        path.mkdir()
        (path / "metadata.csv").write_text(listing(speakers, 12))
    options = {"test_clips": 5, "tuning_clips": 4}
    assert keys_of(clients(alone, **options)["b"]) == keys_of(clients(all_of_them, **options)["b"])
    picked = clients(all_of_them, select=("c", "b"), **options)
    assert keys_of(picked["b"]) == keys_of(clients(alone, **options)["b"])


_SPLIT = """
import json
from fedsim.scenario.clients import ClientSettings
from fedsim.scenario.corpus import CorpusSettings
from fedsim.speech.corpus import open_clients
settings = CorpusSettings(path={path!r}, group_by="speaker", test_clips=5)
found = open_clients(settings, ClientSettings(budget_mb=1), 0)
keys = {{k: [[u.key for u in part] for part in (c.tuning, c.test)] for k, c in found.items()}}
print(json.dumps(keys))
"""


def test_a_split_does_not_depend_on_the_hash_seed(folder):
    root = folder(listing("abc", 12))
    expected = {k: list(keys_of(c)) for k, c in clients(root, test_clips=5).items()}
    code = _SPLIT.format(path=str(root))
    for seed in ("1", "2"):
        path = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == expected


def test_the_split_is_the_published_one(folder):
    """Results that were written down stay comparable: the generator must not change unnoticed."""
    found = clients(folder(listing("ab", 12)), seed=7, test_clips=3, tuning_clips=3)
    numbers = {k: [[int(u[1:-4]) for u in p] for p in keys_of(c)] for k, c in found.items()}
    assert numbers == {"a": [[2, 3, 10], [0, 5, 6]], "b": [[3, 8, 9], [1, 4, 10]]}


def test_generators_have_purposes():
    draws = {
        (seed, client, purpose): client_rng(seed, client, purpose).integers(2**62)
        for seed in (0, 1)
        for client in ("ann", "bob")
        for purpose in ("split", "shuffled-0")
    }
    assert len(set(draws.values())) == len(draws)
    assert client_rng(0, "ann", "split").integers(2**62) == draws[0, "ann", "split"]


def test_select_and_limit(folder):
    root = folder(listing(["cyd", "ann", "bob"], 2))
    assert list(clients(root)) == ["ann", "bob", "cyd"]
    assert list(clients(root, select=("cyd", "ann"))) == ["ann", "cyd"]
    assert list(clients(root, limit=2)) == ["ann", "bob"]
    assert list(clients(root, limit=9)) == ["ann", "bob", "cyd"]
    assert list(clients(root, select=("cyd", "ann"), limit=1)) == ["ann"]
    with pytest.raises(FedsimError, match=r"clients.select names 'bop', .*: did you mean 'bob'"):
        clients(root, select=("ann", "bop"))


def test_too_few_clips(folder):
    for total in (0, 1, 3):
        corpus = settings(folder(listing(["ann"], total) + "x.wav,zoe,yes\n"), test_clips=3)
        found = open_clients(corpus, ClientSettings(budget_mb=1), 0)
        client = found.get("ann", ClientData("ann", (), ()))
        with pytest.raises(FedsimError, match=r"'ann' has no tuning clips.*; lower it") as caught:
            require_clips(client, corpus)
        assert f"{total} of its clips" in str(caught.value)
        assert "corpus.test_clips takes 3 first" in str(caught.value)


def test_enough_clips(folder):
    corpus = settings(folder(listing(["ann"], 4)), test_clips=3)
    require_clips(open_clients(corpus, ClientSettings(budget_mb=1), 0)["ann"], corpus)


def test_a_test_clip_without_text(folder):
    corpus = settings(folder("file_name,speaker\n1.wav,ann\n2.wav,ann\n"), test_clips=1)
    client = open_clients(corpus, ClientSettings(budget_mb=1), 0)["ann"]
    with pytest.raises(FedsimError, match=r"'ann': test clip \d.wav has no text .*; fill in"):
        require_clips(client, corpus)


def test_longer_clips_are_left_out(tmp_path):
    lengths = [0.2, 0.5, 0.3, 0.31, 0.9, 0.25]
    for i, clip in enumerate(toys.clips(lengths)):
        toys.write_wav(tmp_path / f"{i}.wav", clip)
    (tmp_path / "6.wav").write_bytes(b"no audio")
    names = [f"{i}.wav" for i in range(8)]  # 7.wav is missing
    toys.write_metadata(tmp_path, [{"file_name": n, "speaker": "ann", "text": "a"} for n in names])

    def chosen(longest):
        client = clients(tmp_path, max_seconds=longest, test_clips=99)["ann"]
        return [u.key for u in client.test]

    assert chosen(None) == names
    # What cannot be read stays in, so that its client reports it.
    assert chosen(0.3) == ["0.wav", "2.wav", "5.wav", "6.wav", "7.wav"]
    with pytest.raises(AudioError, match=r"7.wav is missing"):
        read_utterance(Utterance("7.wav", tmp_path / "7.wav"))


def test_reading_an_utterance(tmp_path):
    clip = toys.clip(0.4)
    toys.write_wav(tmp_path / "1.wav", clip)
    np.testing.assert_array_equal(read_utterance(Utterance("1.wav", tmp_path / "1.wav")), clip)
    toys.write_wav(tmp_path / "2.wav", clip, rate=8000)
    slow = Utterance("2.wav", tmp_path / "2.wav")
    with pytest.raises(AudioError, match=rf"{tmp_path}/2.wav has a rate of 8,000 Hz; resample it"):
        read_utterance(slow)
    assert len(read_utterance(slow, convert=True)) == 12_800


COLUMNS = {
    "audio": "sound",
    "gender": "sex",
    "text": "said",
    "speaker": "who",
    "language": "locale",
}


def test_a_data_set_of_parquet(parquet):
    found = utterances(parquet, kind="hub", split="train", columns=COLUMNS)
    assert len(found) == len({u.key for u in found}) == 16
    assert found == sorted(found, key=lambda u: u.key)
    first, last = found[0], found[-1]
    assert (first.text, first.speaker, first.gender, first.language) == (
        *("clip number 0", "0", "male", "en_us"),
    )
    assert (last.gender, last.language) == ("female", None)
    wav = parquet.parent / "wav"
    for i in (0, 15):
        samples, _ = soundfile.read(wav / f"{i}.wav", dtype="float32")
        np.testing.assert_array_equal(read_utterance(found[i]), samples)
    grouped = clients(parquet, kind="hub", split="train", columns=COLUMNS, group_by="gender")
    assert {k: len(c.test) + len(c.tuning) for k, c in grouped.items()} == {"female": 8, "male": 8}
    grouped = clients(parquet, kind="hub", split="train", columns=COLUMNS, group_by="speaker")
    assert list(grouped) == ["0", "1", "2", "3"]
    assert grouped["0"].language == "en"
    short = clients(
        parquet, kind="hub", split="train", columns=COLUMNS, group_by="gender", max_seconds=0.4
    )
    assert sum(len(c.test) + len(c.tuning) for c in short.values()) == 6


def test_a_data_set_that_cannot_be_had(parquet, tmp_path):
    with pytest.raises(FedsimError, match=r"cannot be loaded: .+; check corpus.path") as caught:
        utterances(tmp_path / "nowhere", kind="hub")
    assert "\n" not in str(caught.value)
    with pytest.raises(FedsimError, match=r"cannot be loaded: .*test.*; check"):
        utterances(parquet, kind="hub", split="test", columns=COLUMNS)
    with pytest.raises(FedsimError, match=r"no column 'audio' for audio: .*; map what differs"):
        utterances(parquet, kind="hub", split="train")


@pytest.fixture
def unlabelled(tmp_path, monkeypatch):
    """A data set in which some clips have an empty speaker and no gender (-1 is none)."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {
            "audio": datasets.Audio(),
            "gender": datasets.ClassLabel(names=["male", "female"]),
            "speaker": datasets.Value("string"),
        }
    )
    columns = {
        "audio": [{"bytes": b"", "path": None}] * 4,
        "gender": [0, 1, -1, None],
        "speaker": ["ann", " bob ", "", None],
    }
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table(columns, schema=features.arrow_schema), tmp_path / "data/test.parquet")
    return tmp_path / "data"


def test_no_label_in_a_data_set_is_none(unlabelled):
    """As in a folder: white space is no part of a name, and what is empty names nobody."""
    found = utterances(unlabelled, kind="hub")
    assert [u.speaker for u in found] == ["ann", "bob", None, None]
    assert [u.gender for u in found] == ["male", "female", None, None]


def test_an_unreadable_clip_of_a_data_set_is_named(unlabelled):
    found = utterances(unlabelled, kind="hub")
    with pytest.raises(AudioError, match=r"0000000 cannot be read .*; replace it"):
        read_utterance(found[0])


def test_clients_are_made_when_they_are_asked_for():
    made = []

    def make(key):
        made.append(key)
        return ClientData(key, (), ())

    found = Clients(["b", "a", "c"], make)
    assert (list(found), len(found), made) == (["b", "a", "c"], 3, [])
    assert (found["a"].key, made) == ("a", ["a"])
    few = found.restrict(["c", "b"])
    assert (list(few), len(few), made) == (["c", "b"], 2, ["a"])
    assert [c.key for c in few.values()] == ["c", "b"]
    for clients_of, missing in ((found, "d"), (few, "a")):
        assert missing not in clients_of
        with pytest.raises(KeyError):
            clients_of[missing]
    assert made == ["a", "c", "b"]


def test_a_corpus_is_its_clients_in_sorted_order(folder):
    """What a corpus of another package has to give as well: see `READERS`."""
    root = folder(listing(["cyd", "ann", "bob"], 4))
    found = READERS["folder"].open(settings(root, test_clips=2, tuning_clips=2), 3)
    assert list(found) == ["ann", "bob", "cyd"]
    assert found["bob"] == clients(root, seed=3, test_clips=2, tuning_clips=2)["bob"]
    assert found["bob"] == found["bob"]


def test_an_unknown_kind_of_corpus(tmp_path):
    with pytest.raises(FedsimError, match="'foldr': did you mean 'folder'"):
        READERS["foldr"]
    with pytest.raises(ValidationError, match="did you mean 'folder'"):
        settings(tmp_path, kind="foldr")


def test_a_reader_of_another_package():
    """Selection and limits work on what it opens, and only for the clients asked for."""
    made = []

    def open_(corpus, seed):
        def make(key):
            made.append((key, seed))
            return ClientData(key, (Utterance(f"{key}1", Path("a")),), ())

        return Clients(["ann", "bob", "cyd"], make)

    entry = CorpusReader(open_, summary="Three clients without recordings.", takes=())
    with added(READERS, "three", entry):
        corpus = CorpusSettings(kind="three", group_by="speaker")
        few = open_clients(corpus, ClientSettings(budget_mb=1, select=("bob", "ann")), 5)
        assert (list(few), made) == (["ann", "bob"], [])
        assert few["bob"].tuning[0].key == "bob1"
        assert made == [("bob", 5)]


def test_utterances_hold_no_audio():
    """Opening a corpus must not fill memory with it."""
    assert {f.name for f in fields(Utterance)} == {
        *("key", "source", "text", "speaker", "gender", "language", "begin", "end"),
    }
