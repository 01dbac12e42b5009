"""`fedsim init`: a scenario to start from, on synthetic voices or on a folder of recordings."""

from __future__ import annotations

import json

import layout_toys
import pytest
import soundfile
import toys
import yaml

from fedsim.cli import main
from fedsim.scenario import load_scenario

TEXTS = ("moja mbili", "tatu nne", "tano sita", "saba nane", "tisa kumi", "habari yako")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, rows, rate=16_000, **more):
    """Write an AudioFolder with a clip for each row, of 0.3 s or its `seconds`."""
    for number, row in enumerate(rows):
        samples = toys.clip(row.pop("seconds", 0.3), number)
        toys.write_wav(folder / f"{number}.wav", samples, rate)
        row["file_name"] = f"{number}.wav"
    toys.write_metadata(folder, [{**row, **more} for row in rows])


def librispeech(root, people=("84", "174"), each=5):
    """Write the layout of openslr.org: chapters of FLAC with a .trans.txt."""
    for number, speaker in enumerate(people):
        folder = root / "test-clean" / speaker / "100"
        folder.mkdir(parents=True)
        lines = []
        for i in range(each):
            name = f"{speaker}-100-{i:04}"
            samples = toys.clip(0.3 + 0.05 * i, 10 * number + i)
            soundfile.write(folder / f"{name}.flac", samples, 16_000)
            lines.append(f"{name} {TEXTS[i].upper()}")
        (folder / f"{speaker}-100.trans.txt").write_text("\n".join(lines) + "\n")
    rows = [f"{speaker} | {'FM'[i % 2]} | test-clean | 1.0 | x" for i, speaker in enumerate(people)]
    (root / "SPEAKERS.TXT").write_text("\n".join([";ID|SEX|SUBSET|MINUTES|NAME", *rows]) + "\n")
    return root


def refusal(capsys, *words):
    """The one line that a refused command prints."""
    assert main(["init", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_what_is_written_runs(here, capsys):
    """As it is: two speakers of a language that no synthetic voice speaks, so no public clips."""
    rows = [{"speaker": "ab"[i % 2], "text": TEXTS[i % 6], "language": "sw"} for i in range(9)]
    write(here / "my clips", rows, rate=8_000)
    assert main(["init", "my clips"]) == 0
    text = (here / "my_clips.yaml").read_text()
    scenario = load_scenario(here / "my_clips.yaml")
    assert (scenario.name, scenario.corpus.kind) == ("my_clips", "folder")
    assert scenario.corpus.path == str(here / "my clips")
    assert (scenario.corpus.tuning_clips, scenario.corpus.test_clips) == (1, 3)
    assert scenario.corpus.convert
    assert scenario.quantization.rounding == "nearest"
    for comment in (
        "# 9 clips, ",
        ", in sw",
        "# 2 of 2 speakers have 4 clips or more",
        "# unlabelled; client b has the fewest clips, 4",
        "# some clips are not 16 kHz mono",
        "# no synthetic voice speaks sw",
        "11.4 MB in full precision",
    ):
        assert comment in text
    capsys.readouterr()
    assert main(["validate", "--deep", "my_clips.yaml"]) == 0
    assert "will fail" not in capsys.readouterr().out
    assert main(["run", "my_clips.yaml", "--out", "run", "--engine", "inprocess"]) == 0
    out = capsys.readouterr().out
    assert "myqasr/dynamic" in out
    assert "failed" not in out


def test_a_layout_as_it_is_served(here, capsys):
    librispeech(here / "LibriSpeech")
    assert main(["init", "LibriSpeech", "--out", "study/books.yaml"]) == 0
    scenario = load_scenario(here / "study/books.yaml")
    assert (scenario.name, scenario.corpus.kind) == ("books", "librispeech")
    assert scenario.corpus.path == str(here / "LibriSpeech")
    assert scenario.corpus.group_by == "speaker"
    assert not scenario.corpus.convert
    assert "kind: librispeech   # it has SPEAKER/CHAPTER" in (here / "study/books.yaml").read_text()
    assert main(["validate", "study/books.yaml"]) == 0
    assert "2 clients" in capsys.readouterr().out


@pytest.mark.parametrize("kind", sorted(layout_toys.LAYOUTS))
def test_every_layout_is_taken_as_it_lies_on_disk(here, capsys, kind):
    place = layout_toys.LAYOUTS[kind](here / "corpus")
    model = "bundled:keywords" if kind == "speech_commands" else "bundled:ctc"
    words = ["--model", model, "--out", "study.yaml"]
    assert main(["init", str(place.relative_to(here)), *words]) == 0
    assert load_scenario(here / "study.yaml").corpus.kind == kind
    capsys.readouterr()
    assert main(["validate", "study.yaml"]) == 0
    assert "will fail" not in capsys.readouterr().out


def test_budgets_are_of_the_models_own_size(here, model_folder):
    """The three bit depths fit to the byte, and lie between the ends that the comment names."""
    from fedsim.quant.allocation import smallest
    from fedsim.study.model import load_study_model

    write(here / "clips", [{"speaker": "ab"[i % 2], "text": "yes"} for i in range(8)])
    model = str(model_folder("ctc-group"))
    assert main(["init", "clips", "--model", model]) == 0
    scenario = load_scenario(here / "clips.yaml")
    assert scenario.model.id == model
    sizes = load_study_model(scenario).sizes
    layers = len(sizes.layer_bytes)
    budgets = [int(mb * 2**20) for mb in scenario.clients.budget_mb]
    for budget, bits in zip(budgets, (3, 4, 6), strict=True):
        exact = sizes.total([bits] * layers)
        assert smallest(sizes) < exact <= budget < 1.01 * exact


def test_clients_are_genders_or_languages_where_speakers_have_too_few_clips(here):
    for by, row in (
        ("gender", {"gender": ("female", "male"), "speaker": tuple("abcdefgh")}),
        ("language", {"language": ("sw", "xx"), "gender": ("male", "male")}),
    ):
        rows = [{k: v[i % len(v)] for k, v in row.items()} for i in range(8)]
        write(here / by, rows, text="yes")
        assert main(["init", by]) == 0
        scenario = load_scenario(here / f"{by}.yaml")
        assert scenario.corpus.group_by == by
        assert scenario.corpus.tuning_clips + scenario.corpus.test_clips == 4
    reasons = "0 of 8 speakers with 4 clips or more; 2 of 2 genders have 4 clips or more"
    assert f"# {reasons}" in (here / "gender.yaml").read_text()


def test_who_cannot_take_part_is_left_out(here):
    """One speaker has too few clips, of another one text is missing."""
    rows = [{"speaker": name, "text": "yes"} for name in "aaaabbbbcccd"]
    rows[8]["text"] = ""
    rows.append({"speaker": "c", "text": "no"})
    write(here / "clips", rows)
    assert main(["init", "clips"]) == 0
    assert load_scenario(here / "clips.yaml").clients.select == ("a", "b")
    comment = "# without 2 that lack clips or a text"
    assert comment in (here / "clips.yaml").read_text()


def test_a_window_leaves_long_clips_out(here, model_folder):
    rows = [{"speaker": "ab"[i % 2], "text": "yes", "seconds": 0.3} for i in range(10)]
    rows[0]["seconds"] = rows[1]["seconds"] = toys.WINDOW + 0.5
    write(here / "clips", rows)
    assert main(["init", "clips", "--model", str(model_folder("whisper"))]) == 0
    corpus = load_scenario(here / "clips.yaml").corpus
    assert corpus.max_seconds == toys.WINDOW
    assert corpus.tuning_clips + corpus.test_clips == 4


def test_labels_of_a_classifier(here, capsys, model_folder):
    model = str(model_folder("classifier"))
    words = [*toys.CLASSES[:3], "sheila", "Stop"]
    rows = [{"speaker": "ab"[i % 2], "text": words[i % 5]} for i in range(20)]
    write(here / "clips", rows)
    assert main(["init", "clips", "--model", model]) == 0
    text = (here / "clips.yaml").read_text()
    assert load_scenario(here / "clips.yaml").corpus.leave_out == ("sheila",)
    assert "metric" not in text
    assert main(["validate", "--deep", "clips.yaml"]) == 0
    write(here / "other", [{"speaker": "a", "text": "a sentence"} for _ in range(4)])
    assert "are not among the 4 classes of model" in refusal(capsys, "other", "--model", model)


def test_recordings_that_cannot_be_used(here, capsys):
    (here / "empty").mkdir()
    write(here / "mute", [{"speaker": "a", "text": ""} for _ in range(4)])
    write(here / "one", [{"speaker": "a", "text": "yes"}])
    write(here / "nobody", [{"text": "yes"} for _ in range(4)])
    write(here / "single", [{"speaker": name, "text": "yes"} for name in "abcd"])
    write(here / "partly", [{"speaker": "a", "text": text} for text in ("yes", "", "no")])
    (here / "loose").mkdir()
    toys.write_wav(here / "loose/a.wav", toys.clip(0.3))
    toys.write_metadata(here / "gone", [{"file_name": "a.wav", "speaker": "a", "text": "yes"}])
    for folder, words in (
        ("empty", "corpus empty has no layout that is known"),
        ("loose", "corpus loose has no layout that is known"),
        ("mute", "mute: no clip has a text to compare with"),
        ("one", "one: there is only one clip, 0.wav: a client needs at least two"),
        ("nobody", "gives no speaker, gender or language for any clip"),
        ("single", "no speaker, gender or language has two clips"),
        ("partly", "partly: 1 of 3 clips have no text, the first is 1.wav"),
        ("gone", "no recording can be read, such as a.wav"),
        ("nowhere", "nowhere: this folder of recordings does not exist"),
    ):
        assert words in refusal(capsys, folder)
        assert not (here / f"{folder}.yaml").exists()
    assert "no model folder" in refusal(capsys, "single", "--model", "./none")


def test_files_that_are_not_written(here, capsys):
    write(here / "clips", [{"speaker": "a", "text": "yes"} for _ in range(4)])
    (here / "clips.yaml").write_text("mine")
    assert "clips.yaml exists: name another file" in refusal(capsys, "clips")
    assert (here / "clips.yaml").read_text() == "mine"
    assert "end its name with .yaml" in refusal(capsys, "clips", "--out", "study.json")
    with pytest.raises(SystemExit):
        main(["init", "new.yaml", "--model", "bundled:ctc"])


def test_names_that_yaml_or_a_comment_could_misread(here):
    """Of a folder and its clients: nothing of them becomes syntax."""
    names = ["yes", "# a: [b]"]
    rows = [{"speaker": names[i % 2], "text": "a"} for i in range(8)]
    rows += [{"speaker": "x", "text": "a"}]
    write(here / "a # 'b': \n{c}", rows)
    assert main(["init", "a # 'b': \n{c}", "--out", "study.yaml"]) == 0
    scenario = load_scenario(here / "study.yaml")
    assert scenario.clients.select == ("# a: [b]", "yes")
    assert scenario.corpus.path == str(here / "a # 'b': \n{c}")


def test_synthetic_voices(here, capsys):
    assert main(["init", "my study.yaml"]) == 0
    scenario = load_scenario(here / "my study.yaml")
    assert (scenario.name, scenario.corpus.kind) == ("my_study", "voices")
    assert "exists" in refusal(capsys, "my study.yaml")
    assert "this folder of recordings does not exist" in refusal(capsys, "study")


@pytest.mark.slow
def test_what_is_written_runs_with_public_clips(here, capsys):
    librispeech(here / "LibriSpeech", each=4)
    assert main(["init", "LibriSpeech"]) == 0
    assert "- knapsack" in (here / "LibriSpeech.yaml").read_text()
    assert main(["run", "LibriSpeech.yaml", "--out", "run", "--engine", "inprocess"]) == 0
    assert "failed" not in capsys.readouterr().out
    assert json.loads((here / "run/timing.json").read_text())["clients"] == 2
    assert yaml.safe_load((here / "run/scenario.yaml").read_text())["methods"][-1]
