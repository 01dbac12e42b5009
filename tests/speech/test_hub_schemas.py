"""The paper's studies on data sets in exactly the hub's form, and on forms that differ."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import hub_toys
import numpy as np
import pytest
import soundfile

from fedsim.errors import FedsimError
from fedsim.scenario import load_scenario
from fedsim.scenario.clients import ClientSettings
from fedsim.scenario.corpus import CorpusSettings
from fedsim.scenario.matrix import expand
from fedsim.speech.clips import read_utterance
from fedsim.speech.corpus import open_clients
from fedsim.speech.readers import detect, read_recordings
from fedsim.speech.speakers import read_genders

FOLDER = Path(__file__).parents[2] / "scenarios/paper"
PAPER = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
SPEAKERS = FOLDER / "librispeech_test_clean_speakers.txt"
ON_LIBRISPEECH = sorted(PAPER.keys() - {"language", "speaker"})
CODES = [config.split("_")[0] for config in hub_toys.FLEURS]
TALKERS = {f"{i:08x}": 20 for i in range(11)} | {"ffffff00": 19, "00000fff": 25}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("hub")
    datasets.config.HF_DATASETS_CACHE = home / "cache"
    return home


@pytest.fixture(scope="module")
def librispeech(home):
    return hub_toys.write_librispeech(home / "librispeech_asr")


@pytest.fixture(scope="module")
def fleurs(home):
    return hub_toys.write_fleurs(home / "fleurs")


@pytest.fixture(scope="module")
def commands(home):
    return hub_toys.write_commands(home / "speech_commands", TALKERS)


def study(name, corpus, *overrides):
    return load_scenario(PAPER[name], [f"corpus.path={corpus}", *overrides])


def clients_of(scenario):
    return open_clients(scenario.corpus, scenario.clients, scenario.seed)


def settings(path, **options):
    return CorpusSettings(kind="hub", path=str(path), **{"group_by": "speaker", **options})


def read_hub(corpus):
    return read_recordings(corpus).utterances


def split_is_sound(scenario, clients):
    for client in clients.values():
        tuning, test = ({u.key for u in part} for part in (client.tuning, client.test))
        assert (len(tuning), len(test)) == (
            scenario.corpus.tuning_clips,
            scenario.corpus.test_clips,
        )
        assert not tuning & test
        assert {u.text for u in client.tuning} == {None}
        assert all(u.text for u in client.test)


@pytest.mark.parametrize("name", PAPER)
def test_every_study_of_the_paper_loads(name):
    scenario = load_scenario(PAPER[name])
    assert PAPER[name].read_text().startswith(f"# fedsim run scenarios/paper/{name}.yaml\n")
    assert scenario.name == f"paper-{name.replace('_', '-')}"
    assert detect(scenario.corpus.path) == "hub"
    assert len(expand(scenario)) == np.prod([len(v) for v in scenario.matrix.values()])
    assert bool(scenario.matrix) == (name in ON_LIBRISPEECH)


def test_the_studies_are_those_of_the_paper():
    budgets = load_scenario(PAPER["gender"]).matrix["clients.budget_mb"]
    assert (len(budgets), min(budgets), max(budgets)) == (13, 58, 90)
    assert {68.7, 79.3} < set(budgets)  # 6 and 7 bits everywhere
    language = load_scenario(PAPER["language"])
    assert list(language.corpus.config) == CODES
    assert language.corpus.tuning_clips == 32
    for scenario in (language, load_scenario(PAPER["speaker"])):
        cells = [cell for method in scenario.methods for cell in method.cells()]
        for allocation, calibration, whose in (
            ("myqasr", "cosine", "own"),
            ("myqasr", "cosine", "each"),
            ("uniform", "none", "own"),
        ):
            cell = (allocation, calibration, "nearest", "-", "emulated", whose, "descending", "-")
            assert cell in cells


@pytest.mark.parametrize("name", ON_LIBRISPEECH)
def test_librispeech_by_gender(librispeech, name):
    scenario = study(name, librispeech, "corpus.tuning_clips=4", "corpus.test_clips=8")
    clients = clients_of(scenario)
    assert list(clients) == ["female", "male"]
    split_is_sound(scenario, clients)
    women = {u.speaker for u in (*clients["female"].tuning, *clients["female"].test)}
    assert women == {str(speaker) for speaker in hub_toys.WOMEN}
    assert clients["male"].test[0].text.startswith("HE SAID ")
    assert clients["male"].language is None
    for cell in expand(scenario):
        assert list(clients_of(cell.scenario)) == ["female", "male"]


def test_only_the_split_that_is_asked_for_is_read(librispeech):
    """The training clips of the toy are no parquet, and on the hub they are 30 GB."""
    assert len(read_hub(settings(librispeech, config="clean"))) == 24
    with pytest.raises(FedsimError, match=r"config 'clean' cannot be loaded: "):
        read_hub(settings(librispeech, config="clean", split="train.100"))
    with pytest.raises(FedsimError, match=r"'tset': did you mean 'test'.*; check corpus.path"):
        read_hub(settings(librispeech, config="clean", split="tset"))


def test_a_part_of_a_split(fleurs):
    corpus = settings(fleurs, config="ca_es", split="test[:2]", group_by="gender")
    assert len(read_hub(corpus)) == 2


def test_fleurs_by_language(fleurs):
    scenario = study("language", fleurs, "corpus.tuning_clips=2", "corpus.test_clips=3")
    clients = clients_of(scenario)
    assert list(clients) == CODES
    assert {key: client.language for key, client in clients.items()} == {c: c for c in CODES}
    split_is_sound(scenario, clients)
    assert {u.key.split("/")[0] for u in clients["pt"].test} == {"pt_br"}
    assert {u.text.split(",")[0] for u in clients["pt"].test} == {"Portuguese"}
    assert {u.gender for u in clients["pt"].test} <= {"male", "female"}
    for code in ("ca", "ru"):
        (first, *_) = clients[code].test
        row = int(first.key.split("/")[1])
        stored = hub_toys.audio(0.3 + 0.05 * row, 10 * CODES.index(code) + row, "a.wav")
        samples, _ = soundfile.read(io.BytesIO(stored["bytes"]), dtype="float32")
        np.testing.assert_array_equal(read_utterance(first), samples)


def test_names_of_languages_become_codes(fleurs):
    for config in ("ca_es", ["ca_es", "ko_kr"]):
        clients = open_clients(
            settings(fleurs, config=config, group_by="language"), ClientSettings(budget_mb=1), 0
        )
        assert list(clients) == (["ca"] if config == "ca_es" else ["ca", "ko"])


def test_a_list_of_configs_is_put_together(librispeech):
    columns = {"speaker": "speaker_id"}
    found = read_hub(settings(librispeech, config=["clean", "other"], columns=columns))
    assert len({u.key for u in found}) == len(found) == 30
    assert [u.key.split("/")[0] for u in found] == ["clean"] * 24 + ["other"] * 6
    assert {u.language for u in found} == {None}
    assert found[-1].speaker == "1688"


def test_speech_commands_by_speaker(commands):
    scenario = study("speaker", commands)
    clients = clients_of(scenario)
    # The first ten of the twelve who have 20 clips.
    assert list(clients) == sorted(TALKERS.keys() - {"ffffff00"})[:10]
    split_is_sound(scenario, clients)
    texts = {u.text for client in clients.values() for u in client.test}
    assert texts <= set(hub_toys.COMMANDS)
    everyone = study("speaker", commands, "clients.limit=null", "clients.min_clips=0")
    assert list(clients_of(everyone)) == sorted(TALKERS)
    texts = {u.text for c in clients_of(everyone).values() for u in c.test}
    assert hub_toys.SILENCE not in texts
    with pytest.raises(FedsimError, match=r"the 21 clips .* take 20 .*; lower clients.min_clips"):
        clients_of(study("speaker", commands, "clients.min_clips=21"))


def test_noise_is_a_word_unless_it_is_left_out(commands):
    scenario = study("speaker", commands, "corpus.leave_out=[]", "corpus.test_clips=30")
    first = clients_of(scenario)["00000000"]
    assert hub_toys.SILENCE in {u.text for u in first.test}


@pytest.fixture
def data_set(tmp_path, monkeypatch):
    """Return a function that writes a data set of two rows with these columns."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(config="clean", **columns):
        rows = [{name: values[i] for name, (_, values) in columns.items()} for i in range(2)]
        features = datasets.Features({name: feature for name, (feature, _) in columns.items()})
        hub_toys.write_parquet(tmp_path / f"data/{config}/test.parquet", rows, features)
        folders = [path.name for path in (tmp_path / "data").iterdir() if path.is_dir()]
        card = {name: {"test": f"{name}/test.parquet"} for name in sorted(folders)}
        hub_toys.write_card(tmp_path / "data", card)
        return tmp_path / "data"

    return write


SOUND = (datasets.Audio(), [{"bytes": b"", "path": "a.wav"}] * 2)
WORDS = (datasets.Value("string"), ["one", "two"])


def test_a_schema_that_differs_names_what_was_expected_and_what_is_there(data_set):
    path = data_set(audio=SOUND, sentence=WORDS, reader=WORDS)
    with pytest.raises(FedsimError, match=r"map what differs under corpus.columns") as caught:
        clients_of(study("gender", path))
    assert f"{str(path)!r}, config 'clean' has no column 'speaker_id'" in str(caught.value)
    assert "audio, speaker_id, found audio, sentence, reader" in str(caught.value)


def test_a_schema_without_sound(data_set):
    path = data_set(file=WORDS)
    with pytest.raises(FedsimError, match=r"no column 'audio' .*speaker_id, found file;"):
        clients_of(study("gender", path))


def test_a_config_that_differs_from_the_others_is_named(data_set):
    data_set("ca_es", audio=SOUND, raw_transcription=WORDS)
    path = data_set("de_de", audio=SOUND, transcription=WORDS)
    with pytest.raises(FedsimError, match=r"'de_de' has no column 'raw_transcription' for text"):
        clients_of(study("language", path, "corpus.config={ca: ca_es, de: de_de}"))
    with pytest.raises(FedsimError, match=r"cannot be loaded: .*'it_it'.*'ca_es'") as caught:
        clients_of(study("language", path, "corpus.config={it: it_it}"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (
            {"label": (datasets.List(datasets.Value("string")), [["a"], ["b"]])},
            r"column 'label' holds List\(.*\), and text must be .*; map another column",
        ),
        ({"label": (datasets.Value("float32"), [0.5, 1.0])}, r"column 'label' holds Value\('float"),
        (
            {"audio": (datasets.List(datasets.Value("float32")), [[0.5], [1.0]]), "label": WORDS},
            r"column 'audio' holds List\(.*\), and audio must be Audio; map another",
        ),
    ],
)
def test_columns_that_hold_something_else(data_set, column, sentence):
    path = data_set("v0.02", **{"audio": SOUND, "speaker_id": WORDS, **column})
    with pytest.raises(FedsimError, match=sentence):
        clients_of(study("speaker", path))


def test_numbers_without_names_and_plain_bytes_are_taken(data_set):
    """As a parquet file has them whose writer did not say what they mean."""
    sound = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    numbers = (datasets.Value("int64"), [3, 4])
    path = data_set("v0.02", audio=(sound, SOUND[1]), label=numbers, speaker_id=WORDS)
    columns = {"text": "label", "speaker": "speaker_id"}
    found = read_hub(settings(path, config="v0.02", columns=columns))
    assert [(u.text, u.speaker) for u in found] == [("3", "one"), ("4", "two")]


def test_the_list_that_comes_along():
    sexes = list(read_genders(str(SPEAKERS)).values())
    assert (sexes.count("female"), sexes.count("male")) == (20, 20)


def test_lists_of_speakers(tmp_path):
    for text in (
        "speaker,gender\n61,M\n121,female\n",
        "\ufeffname,gender,speaker\r\nx,male,61\r\ny, F , 121 \r\n",
        ";ID  |SEX| SUBSET           |MINUTES| NAME\n"
        "61   | M | test-clean       | 8.08  | Paul\n"
        "121  | F | test-clean       | 8.01  | |CB,W\n\n",
    ):
        (tmp_path / "list").write_text(text)
        assert read_genders(str(tmp_path / "list")) == {"61": "male", "121": "female"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("id,sex\n61,M\n", r"columns id, sex; name them speaker, gender"),
        ("", r"columns none; name them speaker, gender"),
        ("speaker,gender\n61,\n", r"list:2: .* no gender; add one"),
        ("speaker,gender\n61\n", r"list:2: .* no gender; add one"),
        ("; a\n | F | x\n", r"list:2: .* no speaker; add one"),
        ("61 | F\n62, F\n", r"list:2: '62, F' .*; write ID \| SEX \| SUBSET"),
        ("61|F\n61|M\n", r"list:2: speaker '61' is male here and female above; remove"),
        (
            b"speaker,gender\nZo\xeb,F\n",
            r"corpus.speakers: .*:2: the file is not UTF-8 text: save it as UTF-8",
        ),
    ],
)
def test_wrong_lists_of_speakers(tmp_path, text, sentence):
    (tmp_path / "list").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FedsimError, match=sentence):
        read_genders(str(tmp_path / "list"))


def test_speakers_that_are_not_listed(librispeech, tmp_path):
    (tmp_path / "few.csv").write_text("speaker,gender\n121,F\n")
    with pytest.raises(FedsimError, match=r"few.csv does not list speaker '237' .*; add a line"):
        clients_of(study("gender", librispeech, f"corpus.speakers={tmp_path}/few.csv"))
    with pytest.raises(FedsimError, match=r"corpus.speakers: .*/none.csv: .*: check the path"):
        clients_of(study("gender", librispeech, f"corpus.speakers={tmp_path}/none.csv"))
    with pytest.raises(
        FedsimError, match=r"corpus.speakers .*; map it under corpus.columns.speaker"
    ):
        clients_of(study("gender", librispeech, "corpus.columns={}"))
    with pytest.raises(FedsimError, match=r"no gender .*; .* give corpus.speakers, or choose"):
        clients_of(study("gender", librispeech, "corpus.speakers=null"))


def test_the_genders_of_a_folder(tmp_path):
    """What the corpus says itself stays, with no client of it; the list fills in the rest."""
    (tmp_path / "metadata.csv").write_text(
        "file_name,speaker,gender,text\n1.wav,ann,,a\n2.wav,bob,other,b\n3.wav,,,c\n"
    )
    (tmp_path / "who.csv").write_text("speaker,gender\nann,female\nbob,male\n")
    corpus = CorpusSettings(
        path=str(tmp_path), speakers=str(tmp_path / "who.csv"), group_by="gender"
    )
    found = open_clients(corpus, ClientSettings(budget_mb=1), 0)
    assert {key: [u.key for u in c.test] for key, c in found.items()} == {
        "female": ["1.wav"],
    }


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "corpus={kind: folder, path: p, group_by: speaker, config: a}",
            "'folder' takes no config",
        ),
        (
            "corpus={kind: folder, path: p, group_by: speaker, config: {ca: a}}",
            "'folder' takes no config",
        ),
        ("corpus.config=[a, b, a]", "'a' is listed twice"),
        ("corpus.config={ca: a, de: a}", "'a' is listed twice"),
        ("corpus.config=[]", "corpus.config is an empty list: must not be empty"),
        ("corpus.config={}", "corpus.config is an empty mapping: must not be empty"),
        ("corpus.config=3", "corpus.config is 3: must be text, so put it in quotes"),
        ("corpus.config={ca: 3}", "corpus.config.ca is 3: must be text, so put it in quotes"),
        ("corpus.columns.language=lang", "language of each configuration"),
        ("corpus.columns.sex=lang", "unknown column 'sex'"),
        ("clients.min_clips=-1", "clients.min_clips is -1: must be at least 0"),
        (
            "corpus={kind: voices, population: {speakers: 2}, group_by: speaker, leave_out: a}",
            "'voices' takes no leave_out",
        ),
    ],
)
def test_settings_that_make_no_sense(override, sentence):
    with pytest.raises(FedsimError) as caught:
        load_scenario(PAPER["language"], [override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_scenario_comes_back_from_its_yaml_and_json():
    from fedsim.scenario import scenario_from_json

    for path in PAPER.values():
        scenario = load_scenario(path)
        assert scenario_from_json(scenario.model_dump_json()) == scenario
