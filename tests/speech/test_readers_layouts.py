"""Each layout as it is downloaded: the clips, who speaks, what is said, and what is refused."""

from __future__ import annotations

import json

import layout_toys as toy
import numpy as np
import pytest
import soundfile

from fedsim.errors import FedsimError
from fedsim.scenario.clients import ClientSettings
from fedsim.scenario.corpus import CorpusSettings
from fedsim.scenario.readers import READERS
from fedsim.speech.clips import read_utterance
from fedsim.speech.corpus import open_clients
from fedsim.speech.eligible import require_clips
from fedsim.speech.readers import detect, read_files, read_recordings


def settings(path, **options) -> CorpusSettings:
    return CorpusSettings(path=str(path), **{"group_by": "speaker", **options})


def found(path, **options):
    """The utterances as clients have them: genders and languages in one form."""
    corpus = settings(path, **options)
    return list(open_clients(corpus, ClientSettings(), 0).found.utterances)


def clients(path, **options):
    return open_clients(settings(path, **options), ClientSettings(), 0)


@pytest.mark.parametrize("kind", toy.LAYOUTS)
def test_every_layout_is_told_and_its_clips_are_read(tmp_path, kind):
    path = toy.LAYOUTS[kind](tmp_path)
    assert detect(path) == kind
    split = "test-clean" if kind == "librispeech" else "test"
    group = "gender" if kind == "fleurs" else "speaker"
    columns = {"speaker": "speaker_id"} if kind == "folder" else {}
    columns |= {"speaker": "text"} if kind in ("nemo", "kaldi") else {}
    corpus = settings(path, split=split, group_by=group, columns=columns, convert=True)
    recordings = read_recordings(corpus)
    assert len(recordings.utterances) >= 2
    assert len({u.key for u in recordings.utterances}) == len(recordings.utterances)
    for utterance in recordings.utterances:
        assert read_utterance(utterance, convert=True).size >= 0.25 * 16_000
    # Nothing depends on what kind was asked for: auto or the layout by its name.
    named = corpus.model_copy(update={"kind": kind})
    assert read_recordings(named).utterances == recordings.utterances
    files = read_files(corpus)
    if READERS[kind].reads_all:
        assert files is None
    else:
        assert set(files) >= {*recordings.tables, *(u.source for u in recordings.utterances)}


def test_every_layout_on_disk_has_a_toy():
    assert {name for name in READERS if READERS[name].recognizes} == {*toy.LAYOUTS, "hub"}


def test_librispeech(tmp_path):
    root = toy.librispeech(tmp_path)
    (first, *rest) = found(root / "test-clean")
    assert (first.key, first.text) == ("61-70968-0000", "IT WAS THE ONETH O'CLOCK")
    assert (first.speaker, first.gender, first.language) == ("61", "male", "en")
    assert len(rest) == 11
    samples, _ = soundfile.read(first.source, dtype="float32")
    np.testing.assert_array_equal(read_utterance(first), samples)
    # Numbers of speakers are in their order, also beside SPEAKERS.TXT and with the hub's words.
    speakers = list(dict.fromkeys(u.speaker for u in rest))
    assert speakers == ["61", "121", "237", "1089"]
    for options in ({"split": "test-clean"}, {"split": "test", "config": "clean"}):
        assert found(root, **options) == [first, *rest]
    assert {u.gender for u in found(root, split="dev-other")} == {"male"}
    chapters = clients(root, split="test-clean", columns={"speaker": "chapter_id"})
    assert set(chapters) == {chapter for chapter, _ in toy.LIBRISPEECH.values()}
    with pytest.raises(FedsimError, match=r"corpus.split 'test' is no part .*test-clean"):
        found(root)
    table = root / "test-clean/61/70968/61-70968.trans.txt"
    toy.lines(table, "62-70968-0000 HE")
    with pytest.raises(FedsimError, match=r"trans.txt:1: '62-70968-0000' is no id of chapter 61-7"):
        found(root / "test-clean")


def test_librispeech_without_its_list_of_speakers(tmp_path):
    root = toy.librispeech(tmp_path)
    (root / "SPEAKERS.TXT").unlink()
    opened = clients(root, split="test-clean")
    assert any("SPEAKERS.TXT" in note for note in opened.found.notes)
    with pytest.raises(FedsimError, match=r"give corpus.speakers"):
        clients(root, split="test-clean", group_by="gender")


def test_speech_commands(tmp_path):
    root = toy.speech_commands(tmp_path)
    test = found(root)
    assert {u.speaker for u in test} == {toy.HASHES[0]}
    assert [u.key for u in test][:2] == [
        "marvin/0a2b400e_nohash_0.wav",
        "marvin/0a2b400e_nohash_1.wav",
    ]
    assert {u.text for u in test} == set(toy.COMMANDS)
    assert {u.speaker for u in found(root, split="validation")} == {toy.HASHES[1]}
    assert {u.speaker for u in found(root, split="train")} == {toy.HASHES[2]}
    columns = {"text": "label", "speaker": "speaker_id"}  # as on the hub
    assert found(root, columns=columns, config="v0.02", leave_out="_silence_") == test
    with pytest.raises(FedsimError, match=r"has test, validation and train; set one"):
        found(root, split="tset")
    (root / test[0].key).unlink()
    with pytest.raises(FedsimError, match=r"testing_list.txt:\d+: 'marvin/.*' is not there"):
        found(root)


def test_common_voice(tmp_path):
    root = toy.common_voice(tmp_path)
    clips = found(root / "en")
    assert len(clips) == 12  # no row is swallowed by a quotation mark
    assert [u.text for u in clips[:3]] == [
        '"Hello',
        'He said "two" of them.',
        "three, four\u2028five",
    ]
    assert {u.language for u in clips} == {"en"}
    genders = [u.gender for u in clips[::3]]
    assert genders == ["male", "female", None, "male"]
    assert list(clients(root / "en", group_by="gender")) == ["female", "male"]
    assert {len(u.speaker) for u in clips} == {128}
    assert found(root) == clips  # the folder of the release, with one language in it
    assert len(found(root / "en", split="validated")) == 2
    accents = clients(root / "en", columns={"speaker": "accents"})
    assert list(accents) == ["United States English,Midwestern"]
    with pytest.raises(FedsimError, match=r"there is no .*/tset.tsv: did you mean 'test'\?"):
        found(root, split="tset")
    assert read_recordings(settings(root)).seconds[clips[0].key] == 0.5


def test_common_voice_of_several_languages(tmp_path):
    for language in ("pt", "zh-CN", "sv-SE"):
        root = toy.common_voice(tmp_path, language, speakers=2)
    by_language = clients(root, group_by="language")
    assert list(by_language) == ["pt", "sv", "zh"]
    assert list(clients(root, group_by="language", config=["pt", "zh-CN"])) == ["pt", "zh"]
    assert list(clients(root, group_by="language", config={"pt": "pt"})) == ["pt"]
    with pytest.raises(FedsimError, match=r"has no language 'zh_CN': did you mean 'zh-CN'"):
        clients(root, config="zh_CN")


def test_common_voice_before_the_column_accents(tmp_path):
    root = toy.common_voice(tmp_path)
    table = root / "en/test.tsv"
    table.write_text(table.read_text().replace("\taccents\t", "\taccent\t", 1))
    assert list(clients(root, columns={"speaker": "accent"})) == [
        "United States English,Midwestern"
    ]


def test_a_row_of_common_voice_with_a_cell_too_few(tmp_path):
    root = toy.common_voice(tmp_path)
    table = root / "en/test.tsv"
    rows = table.read_text().split("\n")
    rows[4] = rows[4].replace("\t", " ", 1)
    table.write_text("\n".join(rows))
    with pytest.raises(FedsimError, match=r"test.tsv:5: the row has 12 cells and there are 13"):
        found(root)


def test_fleurs(tmp_path):
    root = toy.fleurs(tmp_path)
    clips = found(root, group_by="language")
    assert [u.language for u in clips[::4]] == ["zh", "es", "no"]
    assert clips[1].text == '"cmn_hans_cn 1.'
    assert [u.gender for u in clips[:4]] == ["male", "female", None, "male"]
    assert {u.speaker for u in clips} == {None}
    assert list(clients(root, group_by="language")) == ["es", "no", "zh"]
    config = {"no": "nb_no", "es": "es_419"}
    columns = {"text": "raw_transcription"}
    opened = clients(root, group_by="language", config=config, columns=columns)
    assert list(opened) == ["es", "no"]
    assert found(root / "nb_no", group_by="language")[0].key == clips[8].key.split("/")[1]
    lower = found(root / "nb_no", group_by="language", columns={"text": "transcription"})
    assert lower[0].text == "nb_no 0"
    assert read_recordings(settings(root)).seconds[clips[0].key] == 0.4
    with pytest.raises(FedsimError, match=r"no speaker for any clip"):
        found(root)


def test_fleurs_as_the_hub_serves_it(tmp_path):
    root = toy.fleurs(tmp_path, ("nb_no",))
    folder = tmp_path / "fleurs/data/nb_no"
    folder.mkdir(parents=True)
    (root / "nb_no/test.tsv").rename(folder / "test.tsv")
    (folder / "audio").mkdir()
    (folder / "audio/test.tar.gz").write_bytes(b"")
    assert detect(tmp_path / "fleurs") == "fleurs"
    with pytest.raises(FedsimError, match=r"not there; unpack .*audio/test.tar.gz"):
        found(tmp_path / "fleurs", group_by="language")
    (root / "nb_no/test").rename(folder / "audio/test")
    assert len(found(tmp_path / "fleurs", group_by="language")) == 4


def test_mls(tmp_path):
    root = toy.mls(tmp_path)
    clips = found(root)
    assert [(u.speaker, u.gender) for u in clips[::3]] == [("6892", "male"), ("8758", "female")]
    assert clips[0].text == "jak się masz 0"
    assert {u.language for u in clips} == {"pl"}
    assert found(root / "test") == clips
    assert found(tmp_path, config="mls_polish_opus") == clips
    toy.lines(root / "test/transcripts.txt", "6892_10350_000000 no tab")
    with pytest.raises(
        FedsimError, match=r"transcripts.txt:1: a line is SPEAKER_BOOK_NUMBER, a tab"
    ):
        found(root)


def test_voxpopuli(tmp_path):
    clips = found(toy.voxpopuli(tmp_path))
    assert [(u.speaker, u.gender, u.language) for u in clips] == [
        ("124720", "male", "hr"),
        (None, None, "hr"),
        ("96713", "female", "hr"),
    ]
    assert clips[0].text == "dobar dan 0"
    assert found(tmp_path / "transcribed_data/hr") == clips


def test_kaldi(tmp_path):
    root, long = toy.kaldi(tmp_path)
    clips = found(root)
    assert [(u.key, u.speaker, u.gender, u.language) for u in clips] == [
        ("ann-1", "ann", "female", "en"),
        ("ann-2", "ann", "female", "en"),
        ("bob-1", "bob", "male", "en"),
        ("bob-2", "bob", "male", "en"),
    ]
    assert [u.text for u in clips] == ["ONE", "TWO  THREE", "FOUR", None]
    np.testing.assert_allclose(read_utterance(clips[1]), long[8_000:20_000], atol=1e-4)
    np.testing.assert_allclose(read_utterance(clips[2]), long[20_000:], atol=1e-4)
    assert found(root / "test") == clips
    opened = clients(root)
    assert any(
        "1 line without a recording, the first is cyd-1" in note for note in opened.found.notes
    )


@pytest.mark.parametrize(
    ("table", "text", "sentence"),
    [
        ("wav.scp", "rec1 sph2pipe -f wav a.sph |", r"wav.scp:1: .* is a command, .* never run"),
        ("wav.scp", "rec1 touch {root}/harm; cat a.wav |", r"wav.scp:1: .* is a command"),
        ("wav.scp", "rec1 raw.1.ark:42", r"wav.scp:1: 'raw.1.ark:42' is a place in an archive"),
        ("wav.scp", "rec1", r"wav.scp:1: the line has 'rec1' only"),
        ("segments", "ann-1 rec9 0 1", r"segments:1: recording 'rec9' is not in wav.scp: did"),
        ("segments", "ann-1 rec1 1.0 0.5", r"segments:1: clip 'ann-1' begins at 1 s and ends at 0"),
        ("segments", "ann-1 rec1 x 0.5", r"segments:1: the begin is 'x'; give a time in seconds"),
        ("segments", "ann-1 rec1", r"segments:1: a line is UTTERANCE RECORDING BEGIN END"),
        ("text", "ann-1 A\nann-1 B", r"text:2: 'ann-1' is listed twice"),
    ],
)
def test_lines_of_kaldi_that_are_none(tmp_path, table, text, sentence):
    root, _ = toy.kaldi(tmp_path)
    toy.lines(root / "test" / table, text.format(root=tmp_path))
    with pytest.raises(FedsimError, match=sentence):
        found(root)
    assert not (tmp_path / "harm").exists()


def test_nemo(tmp_path):
    root, long = toy.nemo(tmp_path)
    clips = found(root, group_by="language")
    assert [u.text for u in clips] == ['"eins', "zwei", "drei"]
    assert [(u.speaker, u.language) for u in clips] == [(None, "de"), (None, "de"), ("7", None)]
    np.testing.assert_allclose(read_utterance(clips[0]), long[8_000:16_000], atol=1e-4)
    np.testing.assert_allclose(read_utterance(clips[1]), long[16_000:], atol=1e-4)
    assert detect(root / "test_manifest.json") == "nemo"
    assert found(root / "test_manifest.json", group_by="language") == clips
    assert len(found(root, split="train")) == 1
    with pytest.raises(FedsimError, match=r"there is no tset_manifest.json .*'test_manifest.json'"):
        found(root, split="tset")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"audio_filepath": "a.wav"', r"a.json:2: the line is not JSON"),
        ("[1]", r"a.json:2: \[1\] is not an object"),
        ('{"text": "a"}', r"a.json:2: the line has no audio_filepath"),
        ('{"audio_filepath": "a", "offset": -1}', r"a.json:2: offset is -1; give a time"),
        ('{"audio_filepath": "a", "duration": "x"}', r"a.json:2: duration is 'x'; give a time"),
        ('{"audio_filepath": "a", "duration": NaN}', r"a.json:2: duration is nan; give a time"),
        ('{"audio_filepath": "a", "duration": 0}', r"a.json:2: clip 'a' begins at 0 s and ends"),
    ],
)
def test_lines_of_nemo_that_are_none(tmp_path, line, sentence):
    good = {"audio_filepath": "b.wav", "speaker": "a", "text": "b"}
    toy.lines(tmp_path / "a.json", json.dumps(good), line)
    with pytest.raises(FedsimError, match=sentence):
        found(tmp_path / "a.json")


@pytest.mark.parametrize("cuts", [False, True])
def test_lhotse(tmp_path, cuts):
    root, long = toy.lhotse(tmp_path, cuts=cuts)
    clips = found(root)
    assert [(u.key, u.speaker, u.gender, u.language) for u in clips] == [
        ("rec1-a", "ann", "female", "en"),
        ("rec1-b", "bob", "male", "en"),
    ]
    np.testing.assert_allclose(read_utterance(clips[0]), long[4_000:12_000], atol=1e-4)
    np.testing.assert_allclose(read_utterance(clips[1]), long[16_000:], atol=1e-4)
    assert list(clients(root, columns={"speaker": "dialect"})) == ["north"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"type": "command", "source": "touch harm"}, r"gz:1: .* is a command, and a command from"),
        ({"type": "url", "source": "http://a/b.wav"}, r"gz:1: the source is of type 'url'"),
        ({"type": "memory", "source": None}, r"gz:1: a recording has one source that is a file"),
    ],
)
def test_sources_of_lhotse_that_are_no_files(tmp_path, change, sentence):
    root, _ = toy.lhotse(tmp_path)
    source = {"type": "file", "channels": [0], "source": "a.wav", **change}
    recording = {"id": "rec1", "sources": [source], "sampling_rate": 16_000, "duration": 2.0}
    toy.lines(root / "toy_recordings_test.jsonl.gz", json.dumps(recording))
    with pytest.raises(FedsimError, match=sentence):
        found(root)


def test_a_second_channel_of_lhotse(tmp_path):
    root, _ = toy.lhotse(tmp_path)
    row = {"id": "x", "recording_id": "rec1", "start": 0, "duration": 1, "channel": 1}
    toy.lines(root / "toy_supervisions_test.jsonl.gz", json.dumps(row))
    with pytest.raises(FedsimError, match=r"of channel 1, and the first only is read"):
        found(root)


def test_metadata_in_split_folders(tmp_path):
    root = toy.audiofolder(tmp_path)
    columns = {"speaker": "speaker_id", "text": "transcription"}
    assert [u.text for u in found(root, columns=columns)] == ["test 0", "test 1", "test 2"]
    train = found(root, columns=columns, split="train")
    assert [(u.text, u.speaker) for u in train[:2]] == [("train 0", "0"), ("train 1", "1")]
    assert train[0].source == root / "train/0.wav"
    with pytest.raises(FedsimError, match=r"metadata in test, train and none for split 'dev'"):
        found(root, columns=columns, split="dev")
    (root / "test/metadata.csv").write_text("file_name\n0.wav\n")
    with pytest.raises(FedsimError, match=r"has metadata.csv and metadata.jsonl; remove one"):
        found(root, columns=columns)


def test_segments_of_one_file_are_no_duplicates(tmp_path):
    """Unless they are the same part of it, or mostly so."""
    toy.sound(tmp_path / "a.wav", 1, 4.0)
    toy.sound(tmp_path / "b.wav", 1, 4.0)  # the same recording under another name

    def check(*spans):
        rows = [
            {"audio_filepath": f"{n}.wav", "offset": b, "duration": d, "speaker": "x", "text": "y"}
            for n, b, d in spans
        ]
        toy.lines(tmp_path / "m.json", *map(json.dumps, rows))
        corpus = settings(tmp_path / "m.json", test_clips=1)
        require_clips(open_clients(corpus, ClientSettings(), 0)["x"], corpus)

    check(("a", 0, 1), ("a", 1, 1), ("a", 1.9, 1))
    for spans in (
        (("a", 0.5, 1), ("b", 0.5, 1)),
        (("a", 0.5, 1), ("a", 0.6, 1)),
        (("a", 0, 3), ("a", 1, 1)),
    ):
        with pytest.raises(FedsimError, match=r"have the same content, .* corpus.duplicates: keep"):
            check(*spans)


def test_a_column_that_names_recordings_is_the_layouts(tmp_path):
    root = toy.librispeech(tmp_path)
    with pytest.raises(FedsimError, match=r"corpus.columns.audio is 'text', .*; remove it"):
        found(root / "test-clean", columns={"audio": "text"})


def test_rows_that_repeat(tmp_path):
    """An equal row counts once, and a note reports it; one that differs is refused."""
    root = toy.fleurs(tmp_path, ("nb_no",))
    table = root / "nb_no/test.tsv"
    rows = table.read_text().split("\n")[:-1]
    toy.lines(table, *rows, rows[0])
    opened = clients(root, group_by="language")
    assert len(opened.found.utterances) == 4
    assert any("test.tsv:5" in note for note in opened.found.notes)
    toy.lines(table, *rows, rows[0].replace("MALE", "FEMALE"))
    with pytest.raises(
        FedsimError, match=r"test.tsv:5: .* is listed twice; remove one of the rows"
    ):
        clients(root, group_by="language")
