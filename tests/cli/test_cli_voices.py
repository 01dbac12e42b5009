"""`fedsim voices`, and `fedsim validate` of synthetic speakers."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from fedsim.cli import main
from fedsim.scenario import load_scenario
from fedsim.speech.clips import read_utterance
from fedsim.speech.corpus import open_clients
from fedsim.speech.voices.speaker import speaker

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
def spoken(monkeypatch):
    """A list with one item for each piece of audio that the synthesizer has given out."""
    pieces = []
    given = ctypes.string_at

    def string_at(*arguments):
        pieces.append(arguments)
        return given(*arguments)

    monkeypatch.setattr(ctypes, "string_at", string_at)
    return pieces


def test_voices_lists_speakers_and_how_they_speak(capsys, spoken):
    assert main(["voices", "--speakers", "3", "--first", "16"]) == 0
    out, err = capsys.readouterr()
    assert (err, "\x1b" in out) == ("", False)
    head, *rows = [line.split() for line in out.splitlines()]
    assert head[:4] == ["speaker", "gender", "accent", "variant"]
    assert [row[0] for row in rows] == ["en-000016", "en-000017", "en-000018"]
    for number, row in zip((16, 17, 18), rows, strict=True):
        who = speaker("en", number)
        assert row[1:6] == [who.gender, who.accent, who.variant, str(who.rate), str(who.pitch)]
        assert [float(cell) for cell in row[6:]] == [
            round(who.tract, 2),
            round(who.reverberation_s, 2),
            round(who.snr_db),
            round(who.level_db),
        ]
    assert not spoken


def test_voices_lists_ten_unless_asked_otherwise(capsys, spoken):
    assert main(["voices"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 11
    words = "voices --speakers 6 --languages fr en --genders male"
    assert main(words.split()) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert {row[1] for row in rows} == {"male"}
    assert [row[0][:2] for row in rows] == ["en"] * 3 + ["fr"] * 3
    assert not spoken


def test_voices_exports_what_a_scenario_tests(capsys, folder):
    """The test clips of a scenario with the same population and seed, to the sample."""
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


def test_voices_exports_words_and_a_list(capsys, spoken):
    words = "--speakers 1 --clips 1 --topics words --export words"
    assert main(["voices", *words.split()]) == 0
    assert spoken
    assert capsys.readouterr().out == "1 clip of 1 speaker in words\n"
    Path("list.txt").write_text("# ours\nopen the door\nclose the door\n")
    words = "voices --speakers 2 --clips 1 --sentences list.txt --export mine"
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


MISTAKES = [
    # The words on the command line, and words of the error: the option or the file, the remedy.
    ("--first -1", ["--first", "-1"]),
    ("--languages xx", ["'xx'", "ca, de, en, es, fr, it, ja, ko, nl, pl, pt, ru"]),
    ("--languages en eng", ["'eng'", "did you mean 'en'?"]),
    ("--languages en en", ["--languages", "'en' is listed twice: remove one"]),
    ("--topics musik", ["'musik'", "did you mean 'music'?"]),
    ("--topics music words", ["--topics", "remove the other topics"]),
    ("--languages fr --topics words", ["'words'", "'fr'"]),
    ("--first 999991", ["1,000,000", "lower first or speakers"]),
    ("--sentences empty.txt", ["empty.txt", "write one sentence"]),
    ("--sentences nowhere.txt", ["nowhere.txt", "does not exist", "check the path"]),
    ("--sentences few.txt --clips 2", ["few.txt", "test_clips"]),
    ("--sentences few.txt --languages en fr", ["--languages", "name only that one"]),
    ("--genders femal", ["--genders", "female", "'femal'"]),
    ("--seed -1", ["--seed", "-1"]),
]


@pytest.mark.parametrize("export", [False, True])
def test_voices_asked_for_what_does_not_exist(export, capsys):
    Path("empty.txt").write_text("# nothing\n\n")
    Path("few.txt").write_text("open the door\nclose the door\n")
    for number, (words, parts) in enumerate(MISTAKES):
        target = ["--export", f"new-{number}"] if export else []
        assert main(["voices", *words.split(), *target]) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n"), err[:7]) == ("", 1, "error: ")
        assert all(part in err for part in parts), err


def test_voices_that_cannot_say_a_text(capsys):
    # Digits in a script of their own: alphanumeric, and no sound.
    Path("unheard.txt").write_text("\U0001d7d9\n\U0001d7da\n")
    words = "--speakers 1 --clips 1 --sentences unheard.txt --export new"
    assert main(["voices", *words.split()]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: en-000000 cannot say '")


PROGRAM = """\
import sys
sys.modules["espeakng_loader"] = None  # as if it were not installed
from fedsim.cli import main
sys.exit(main({words}))
"""


@pytest.mark.parametrize(
    "words", [["voices"], ["voices", "--export", "new"], ["validate", "voices.yaml"]]
)
def test_voices_without_the_synthesizer(python, words):
    Path("voices.yaml").write_text(VOICES)
    child = python("-c", PROGRAM.format(words=words))
    out, err = child.communicate(timeout=60)
    assert (out, child.returncode) == ("", 1)
    assert err.startswith("error: ")
    assert "pip install 'fedsim-speech[voices]'" in err
    assert not Path("new").exists()


def test_validate_a_population(capsys, spoken):
    Path("voices.yaml").write_text(VOICES)
    assert main(["validate", "voices.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "50 clients; 250 forward passes of one clip"
    assert lines[2].split() == ["en-000000", "2", "3", "30.0"]
    assert lines[41].split()[0] == "en-000039"
    assert lines[42:] == ["... and 10 clients more", "ok: voices: 50 clients, 1 method"]
    few = "corpus.population={speakers: 2, languages: [en, fr, de]}"
    assert main(["validate", "voices.yaml", "--set", few, "corpus.group_by=language"]) == 0
    assert "this client will fail: client 'de' has no tuning clips" in capsys.readouterr().out
    assert not spoken
