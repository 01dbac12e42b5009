"""The command line: words in, words and exit codes out."""

import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest

import fedsim
from fedsim.base import progress
from fedsim.cli import main
from fedsim.errors import FedsimError
from fedsim.fleet.devices import load_catalogue
from fedsim.results.folder import create_run
from fedsim.results.ledger import Ledger
from fedsim.results.records import Failure
from fedsim.results.rows import Row
from fedsim.scenario.clock import ClockSettings, FaultSettings

ROW = Row(
    *("en", "fp32", "fp32", "-", "-", 40 * 2**20, 41_000_000, 32.0, 40),
    *(12, 96, 0.125, 30, 400, 0.075, None, None, "ab" * 32),
)
YAML = """\
name: small
description: Two voices.
model: {id: org/model}
corpus: {path: ./clips, group_by: speaker, test_clips: 2}
clients: {budget_mb: [30, 40.5]}
methods: [fp32]
"""


@dataclass
class Result:
    folder: object
    rows: list
    failures: list


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with small.yaml, a broken.yaml and clips of two speakers."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(YAML)
    Path("broken.yaml").write_text(YAML.replace("budget_mb", "budgt_mb"))
    Path("clips").mkdir()
    lines = ["file_name,speaker,text"]
    for speaker, count in (("ann", 5), ("bob", 3)):
        for i in range(count):
            lines.append(f"{speaker}{i}.wav,{speaker},a word")
            Path("clips", f"{speaker}{i}.wav").write_bytes(b"")
    Path("clips/metadata.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def runs(monkeypatch):
    """Replace `fedsim.run.single`; return the scenarios that were run, and a dict of what to do."""
    seen, wanted = [], {"rows": [ROW], "failures": [], "raises": None}

    def run_scenario(scenario, out):
        seen.append(scenario)
        assert type(progress.current()) is progress.Progress  # active, and quiet here
        made = create_run(out, scenario)
        with Ledger(made.ledger) as ledger:
            ledger.finish_client("en", wanted["rows"][:1])
        if wanted["raises"]:
            raise wanted["raises"]
        return Result(made, wanted["rows"], wanted["failures"])

    module = types.ModuleType("fedsim.run.single")
    module.run_scenario = run_scenario
    monkeypatch.setitem(sys.modules, "fedsim.run.single", module)
    return seen, wanted


def test_run_prints_the_table_and_then_the_folder(runs, capsys, folder):
    assert main(["run", "small.yaml"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert "12.5" in out
    last = out.splitlines()[-1]
    assert last.startswith(f"run folder: {folder}/runs/small/2")
    assert (Path(last.removeprefix("run folder: ")) / "ledger.sqlite").exists()


def test_run_options_reach_the_scenario(runs, folder):
    seen, _ = runs
    words = "run small.yaml --set seed=5 clients.budget_mb=7 --set name=other --engine flower"
    words += " --workers 3 --threads 2 --address head:6379 --out here"
    assert main(words.split()) == 0
    (scenario,) = seen
    assert (scenario.seed, scenario.clients.budget_mb, scenario.name) == (5, 7.0, "other")
    engine = scenario.engine
    assert (engine.kind, engine.address) == ("flower", "head:6379")
    assert (engine.workers, engine.threads) == (3, 2)
    assert (folder / "here" / "scenario.yaml").exists()
    assert not (folder / "runs").exists()


def test_run_keeps_the_engine_of_the_scenario_otherwise(runs):
    assert main(["run", "small.yaml", "--set", "engine.workers=4"]) == 0
    assert (runs[0][0].engine.kind, runs[0][0].engine.workers) == ("ray", 4)


def test_exit_code_when_clients_fail(runs, capsys):
    runs[1]["failures"] = [Failure("it", "sense", "no clips")]
    assert main(["run", "small.yaml"]) == 0
    runs[1]["rows"] = []
    assert main(["run", "small.yaml", "--out", "b"]) == 1
    out = capsys.readouterr().out
    assert out.count("it (sense): no clips") == 2
    assert "No client finished" in out


def test_an_error_has_no_traceback(runs, capsys):
    runs[1]["raises"] = FedsimError("the model is a teapot")
    assert main(["run", "small.yaml"]) == 1
    assert capsys.readouterr() == ("", "error: the model is a teapot\n")


def test_a_mistake_in_the_scenario_is_told_before_anything_is_made(runs, capsys, folder):
    assert main(["run", "broken.yaml"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: broken.yaml:5: unknown key 'budgt_mb' in clients: did you mean" in err
    assert (runs[0], (folder / "runs").exists()) == ([], False)
    assert main(["run", "nowhere"]) == 1
    assert main(["run", "small.yaml", "--engine", "rya"]) == 1
    assert "there is no engine 'rya': did you mean 'ray'?" in capsys.readouterr().err


def test_ctrl_c_says_what_is_kept(runs, capsys):
    runs[1]["raises"] = KeyboardInterrupt()
    assert main(["run", "small.yaml", "--out", "here"]) == 130
    assert capsys.readouterr().err == (
        "interrupted: the clients that finished are in here/ledger.sqlite; "
        "fedsim run --resume here goes on\n"
    )


def test_ctrl_c_before_anything_was_written(monkeypatch, capsys, folder):
    def interrupted(scenario, out):
        raise KeyboardInterrupt

    module = types.ModuleType("fedsim.run.single")
    module.run_scenario = interrupted
    monkeypatch.setitem(sys.modules, "fedsim.run.single", module)
    assert main(["run", "small.yaml"]) == 130
    assert capsys.readouterr().err == "interrupted: nothing is kept\n"
    assert list((folder / "runs" / "small").iterdir()) == []


def test_out_must_be_empty(runs, capsys):
    assert main(["run", "small.yaml", "--out", "clips"]) == 1
    assert "error: clips: the folder is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "run",
        "frob",
        "run small.yaml --workers 0",
        "run small.yaml --threads x",
        "run small.yaml --workers -1",
        "run small.yaml --frob",
        "validate small.yaml --set",
        "voices --speakers 0",
        "voices --clips -1",
        "voices --first one",
        "voices --languages",
        "voices en",
        "voices --export",
    ],
)
def test_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    assert "usage: fedsim" in capsys.readouterr().err


def test_validate_lists_clients_clips_and_budgets(capsys):
    assert main(["validate", "small.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["ann", "3", "2", "30.0"],
        ["bob", "1", "2", "40.5"],
    ]
    assert lines[-1] == "ok: small: 2 clients, 1 method"


def test_validate_warns_of_a_client_that_will_fail(capsys):
    assert main(["validate", "small.yaml", "--set", "corpus.test_clips=3"]) == 0
    out = capsys.readouterr().out
    assert "this client will fail: client 'bob' has no tuning clips" in out


def test_validate_finds_what_only_the_corpus_can_tell(capsys):
    method = "methods=[{allocation: myqasr, tuned_on: an}]"
    assert main(["validate", "small.yaml", "--set", method]) == 1
    assert "'an' is no client of it: did you mean 'ann'?" in capsys.readouterr().err
    assert main(["validate", "small.yaml", "--set", "clients.budget_mb={ann: 3}"]) == 1
    assert "client 'bob' has no budget" in capsys.readouterr().err
    assert main(["validate", "small.yaml", "--set", "model.id=./none"]) == 1
    assert "model.id: there is no " in capsys.readouterr().err


def test_every_line_of_an_error_is_marked(capsys):
    assert main(["validate", "broken.yaml", "--set", "sed=3"]) == 1
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2  # unknown budgt_mb, unknown sed
    assert all(line.startswith("error: ") for line in err)


def test_schema_needs_no_scenario(capsys):
    assert main(["validate", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Scenario"
    assert main(["validate"]) == 2


def test_list_shows_scenarios_and_every_choice(capsys, folder):
    (folder / "scenarios").mkdir()
    (folder / "scenarios" / "voices.yaml").write_text(YAML)
    assert main(["list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["voices", "Two", "voices."] in lines
    first = {line[0] for line in lines if line}
    assert {"fp32", "myqasr", "uniform", "shuffled", "reversed", "linear"} <= first
    assert {"none", "minmax", "cosine", "hessian", "median", "ray", "inprocess"} <= first
    assert {"folder", "hub", "voices"} <= first
    settings = [*FaultSettings.model_fields.items(), *ClockSettings.model_fields.items()]
    legal = {name: set(get_args(field.annotation)) for name, field in settings}
    assert legal["kind"] | legal["policy"] <= first
    assert load_catalogue().keys() <= first
    assert all(len(line) > 1 for line in lines if line and "." not in line[0])  # each explained


VOICES = """\
name: voices
model: {id: org/model}
corpus:
  kind: voices
  group_by: speaker
  tuning_clips: 2
  test_clips: 3
  population: {speakers: 50}
clients: {budget_mb: 30}
methods: [fp32]
"""


@pytest.fixture
def silent(monkeypatch):
    """Whoever asks the synthesizer for anything fails."""

    def synthesize(*_, **__):
        raise AssertionError("a clip was rendered")

    monkeypatch.setattr("fedsim.speech.voices.synthesize", synthesize)


def test_voices_lists_speakers_and_how_they_speak(capsys, silent):
    assert main(["voices", "--speakers", "3", "--first", "16"]) == 0
    out, err = capsys.readouterr()
    assert (err, "\x1b" in out) == ("", False)
    head, *rows = [line.split() for line in out.splitlines()]
    assert head[:4] == ["speaker", "gender", "accent", "variant"]
    assert [row[0] for row in rows] == ["en-000016", "en-000017", "en-000018"]
    from fedsim.speech.voices.speaker import speaker

    for number, row in zip((16, 17, 18), rows, strict=True):
        who = speaker("en", number)
        assert row[1:6] == [who.gender, who.accent, who.variant, str(who.rate), str(who.pitch)]
        assert [float(cell) for cell in row[6:]] == [
            round(who.tract, 2),
            round(who.reverberation_s, 2),
            round(who.snr_db),
            round(who.level_db),
        ]


def test_voices_lists_ten_unless_asked_otherwise(capsys, silent):
    assert main(["voices"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 11
    words = "voices --speakers 6 --languages fr en --genders male"
    assert main(words.split()) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert {row[1] for row in rows} == {"male"}
    assert [row[0][:2] for row in rows] == ["en"] * 3 + ["fr"] * 3


def test_voices_exports_what_a_scenario_tests(capsys, folder):
    """The test clips of a scenario with the same population and seed, to the sample."""
    import numpy as np

    from fedsim.scenario import load_scenario
    from fedsim.speech.clips import read_utterance
    from fedsim.speech.corpus import open_clients

    words = "--speakers 2 --first 16 --clips 3 --seed 4 --export made"
    assert main(["voices", *words.split()]) == 0
    assert capsys.readouterr().out == "6 clips of 2 speakers in made\n"
    people = "corpus.population={speakers: 2, first: 16}"
    Path("voices.yaml").write_text(VOICES)
    asked = load_scenario("voices.yaml", [people, "seed=4"])
    made = load_scenario("small.yaml", ["corpus.path=./made", "corpus.test_clips=9"])
    asked, made = (open_clients(s.corpus, s.clients, s.seed) for s in (asked, made))
    assert list(asked) == list(made) == ["en-000016", "en-000017"]
    for key in asked:
        assert [c.text for c in made[key].test] == [c.text for c in asked[key].test]
        for ours, theirs in zip(asked[key].test, made[key].test, strict=True):
            assert theirs.key == f"{ours.key}.wav"
            np.testing.assert_array_equal(read_utterance(theirs), read_utterance(ours))
    assert main(["validate", "small.yaml", "--set", "corpus.path=./made"]) == 0
    assert "ok: small: 2 clients" in capsys.readouterr().out


def test_voices_exports_words_and_a_list(capsys):
    words = "--speakers 1 --clips 1 --topics words --export words"
    assert main(["voices", *words.split()]) == 0
    assert capsys.readouterr().out == "1 clip of 1 speaker in words\n"
    Path("said.txt").write_text("# ours\nopen the door\nclose the door\n")
    words = "voices --speakers 2 --clips 1 --sentences said.txt --export mine"
    assert main(words.split()) == 0
    lines = Path("mine/metadata.csv").read_text().splitlines()
    assert lines[0] == "file_name,text,speaker,gender,language"
    assert [line.split(",")[1] in ("open the door", "close the door") for line in lines[1:]] == (
        [True, True]
    )


def test_voices_does_not_write_over_anything(capsys, folder):
    assert main(["voices", "--speakers", "1", "--clips", "1", "--export", "clips"]) == 1
    assert capsys.readouterr() == ("", "error: clips is not empty; name a new folder\n")
    assert not list(folder.rglob("en-*"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "--first -1",
            "--first is -1: must be at least 0 (number of the first speaker; a number is always one"
            " person)",
        ),
        ("--languages xx", "no voice speaks 'xx': known: ca, de, en, fr, ja, ko, nl, pl, pt, ru"),
        ("--languages en eng", "no voice speaks 'eng': did you mean 'en'?"),
        ("--languages en en", "--languages: 'en' is listed twice: leave one out"),
        ("--topics musik", "there is no topic 'musik': did you mean 'music'?"),
        ("--topics music words", "--topics: words go alone: leave the other topics out"),
        (
            "--languages fr --topics words",
            "the topic 'words' is English, and corpus.population.languages names 'fr'",
        ),
        (
            "--first 999991",
            "corpus.population: speakers from number 1,000,000 on were heard by the bundled models "
            "in training; lower first or speakers",
        ),
        (
            "--sentences empty.txt",
            "sentence list empty.txt holds no text that could be spoken; write one sentence a line",
        ),
        (
            "--sentences nowhere.txt",
            "sentence list nowhere.txt cannot be read as UTF-8 text: [Errno 2] No such file or "
            "directory: 'nowhere.txt'",
        ),
        (
            "--sentences few.txt --clips 2",
            "sentence list few.txt has 1 sentences for test (half of the list), and "
            "corpus.test_clips asks for 2: add sentences or lower it",
        ),
        (
            "--sentences few.txt --languages en fr",
            "--languages: a sentence list is in one language: name one",
        ),
        (
            "--genders femal",
            "--genders is 'femal': must be female or male; did you mean 'female'?",
        ),
        ("--seed -1", "--seed is -1: must be at least 0"),
    ],
)
@pytest.mark.parametrize("export", ["", " --export new"])
def test_voices_asked_for_what_there_is_not(words, sentence, export, capsys, folder):
    Path("empty.txt").write_text("# nothing\n\n")
    Path("few.txt").write_text("open the door\nclose the door\n")
    assert main(["voices", *words.split(), *export.split()]) == 1
    assert capsys.readouterr() == ("", f"error: {sentence}\n")


def test_voices_that_cannot_say_a_text(capsys):
    # Digits in a script of their own: alphanumeric, and no sound.
    Path("unheard.txt").write_text("\U0001d7d9\n\U0001d7da\n")
    words = "--speakers 1 --clips 1 --sentences unheard.txt --export new"
    assert main(["voices", *words.split()]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: en-000000 cannot say '")
    assert err.endswith("': the synthesizer stays silent\n")


def test_voices_without_the_synthesizer(capsys, monkeypatch):
    from fedsim.speech.voices.synthesizer import _library

    Path("voices.yaml").write_text(VOICES)
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    _library.cache_clear()
    for words in (["voices"], ["voices", "--export", "new"], ["validate", "voices.yaml"]):
        assert main(words) == 1
        assert capsys.readouterr() == (
            "",
            "error: corpus kind 'voices' needs the speech synthesizer: "
            "pip install 'fedsim-speech[voices]'\n",
        )
    assert not Path("new").exists()


def test_validate_a_population(capsys, silent):
    Path("voices.yaml").write_text(VOICES)
    assert main(["validate", "voices.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["en-000000", "2", "3", "30.0"]
    assert lines[40].split()[0] == "en-000039"
    assert lines[41:] == ["... and 10 clients more", "ok: voices: 50 clients, 1 method"]
    few = "corpus.population={speakers: 2, languages: [en, fr, de]}"
    assert main(["validate", "voices.yaml", "--set", few, "corpus.group_by=language"]) == 0
    assert "this client will fail: client 'de' has no tuning clips" in capsys.readouterr().out


def test_fedsim_alone_prints_help(capsys):
    assert main([]) == 0
    assert "fedsim validate prompts_languages" in capsys.readouterr().out


def test_help_and_version(capsys):
    for verb in ("run", "validate", "list", "voices", None):
        with pytest.raises(SystemExit) as caught:
            main([verb, "--help"] if verb else ["--help"])
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: fedsim {verb or '[-h]'}")
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"fedsim {fedsim.__version__}"


def python(*words, **options):
    source = str(Path(progress.__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
        **options,
    )


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from fedsim.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('loaded', sorted({m.split('.')[0] for m in sys.modules}))"
    )
    out, _ = python("-c", code).communicate(timeout=60)
    loaded = out.splitlines()[-1]
    assert loaded.startswith("loaded")
    for heavy in ("torch", "ray", "flwr", "transformers", "datasets", "numpy", "pydantic", "rich"):
        assert f"'{heavy}'" not in loaded


def test_a_reader_that_goes_away_is_no_error():
    child = python("-m", "fedsim", "validate", "--schema")
    child.stdout.close()  # before the first word, as `| true` does
    assert (child.stderr.read(), child.wait(timeout=60)) == ("", 0)
