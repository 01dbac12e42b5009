"""No scenario has what the bundled models were trained on; scenario files of synthetic speakers."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from voice_toys import clients, corpus, takes

from fedsim.errors import FedsimError
from fedsim.scenario import load_scenario
from fedsim.scenario.matrix import expand
from fedsim.speech.clips import ClientData, Clients, Utterance
from fedsim.speech.corpus import open_clients
from fedsim.speech.voices import Take
from fedsim.speech.voices.sentences import WORDS, grammar, role_of
from fedsim.speech.voices.speaker import FIRST_TRAINING_SPEAKER, UNHEARD_VARIANTS, speaker

SCENARIOS = Path(__file__).parents[2] / "scenarios"
SENTENCES = [f"sentence number {i}" for i in range(24)]


# --- what was heard in training


@cache
def _taught() -> re.Pattern:
    """Return what matches every sentence that the English grammar can make."""
    spoken = grammar("en")
    words = {k: "|".join(map(re.escape, v)) for k, v in spoken.slots.items()}
    made = [
        re.sub(r"\{(\w+)\}", lambda slot: f"(?:{words[slot[1]]})", template)
        for templates in spoken.topics.values()
        for template in templates
    ]
    return re.compile("|".join(made))


def heard_in_training(found: Clients) -> list[Take]:
    """Return the takes whose speaker, or whose sentence, a bundled model may know."""
    return [
        take
        for take in takes(found)
        if take.speaker.number >= FIRST_TRAINING_SPEAKER
        or (
            take.text not in WORDS  # these everybody knows: it is the speakers that are new
            and role_of(take.text) == "training"
            and _taught().fullmatch(take.text)
        )
    ]


def cells_of(path: Path) -> list[Clients]:
    """Return the clients of a scenario file of kind voices, for each combination of its matrix."""
    scenario = load_scenario(path, ["model.id=org/model"])  # a model need not be there to speak
    cells = {
        (cell.scenario.corpus.model_dump_json(), cell.scenario.seed): cell.scenario
        for cell in expand(scenario)
    }
    return [open_clients(cell.corpus, cell.clients, cell.seed) for cell in cells.values()]


def is_of_voices(path: Path) -> bool:
    return bool(re.search(r"kind[\"']?:\s*[\"']?voices", path.read_text(encoding="utf-8")))


FILES = sorted(SCENARIOS.rglob("*.yaml"))
OURS = [path for path in FILES if is_of_voices(path)]


LARGE = {"fleet_10000": pytest.mark.slow}
EACH = [pytest.param(path, id=path.stem, marks=LARGE.get(path.stem, ())) for path in OURS]


@pytest.mark.parametrize("path", EACH)
def test_no_scenario_tests_on_what_was_trained_on(path):
    assert cells_of(path)
    for found in map(dict, cells_of(path)):  # each client is made at each look
        assert min(len(part) for c in found.values() for part in (c.tuning, c.test)) > 0
        assert heard_in_training(found) == []
        tuning, test = ({t.text for t in takes(found, part)} for part in ("tuning", "test"))
        assert not (tuning & test) - set(WORDS)
        every = takes(found)
        assert len({(t.speaker.key, t.text, t.number) for t in every}) == len(every)


def test_no_scenario_of_voices_is_overlooked():
    """Nor would the test above be left without a scenario when the folder moves."""
    assert FILES
    corpora = {path: yaml.safe_load(path.read_text(encoding="utf-8"))["corpus"] for path in FILES}
    assert [path for path, found in corpora.items() if found.get("kind") == "voices"] == OURS
    assert [path for path, found in corpora.items() if "population" in found] == OURS


SCENARIO = """\
name: small
model: {id: org/model}
corpus:
  kind: voices
  group_by: speaker
  tuning_clips: 8
  test_clips: 12
  population:
    speakers: 40
    first: 999960
clients: {budget_mb: 30}
methods: [fp32]
"""


@pytest.fixture
def scenario(tmp_path):
    """Return a function that writes SCENARIO with one line replaced, and gives its path."""

    def write(old: str = "", new: str = "") -> Path:
        assert old in SCENARIO
        (tmp_path / "small.yaml").write_text(SCENARIO.replace(old, new) if old else SCENARIO)
        return tmp_path / "small.yaml"

    return write


def test_the_last_speakers_that_a_scenario_may_use(scenario):
    (found,) = cells_of(scenario())
    assert list(found)[-1] == "en-999999"
    assert len(takes(found)) == 800
    assert heard_in_training(found) == []


def test_each_cell_of_a_matrix_is_looked_at(scenario):
    matrix = (
        "methods: [fp32]\nmatrix: {corpus.population.first: [0, 10], clients.budget_mb: [1, 2]}"
    )
    cells = cells_of(scenario("methods: [fp32]", matrix))
    assert [next(iter(found)) for found in cells] == ["en-000000", "en-000010"]
    matrix = "methods: [fp32]\nmatrix: {corpus.population.first: [0, 999961]}"
    with pytest.raises(FedsimError, match="were heard by the bundled models in training"):
        cells_of(scenario("methods: [fp32]", matrix))


def test_a_scenario_that_says_training_sentences_would_be_found(scenario, tmp_path):
    """The check above must be able to fail."""
    sentences = [take.text for take in training_takes("sentences", 0)][:40]
    (tmp_path / "list.txt").write_text("\n".join(sentences))
    (found,) = cells_of(scenario("first: 999960", "sentences: list.txt"))
    assert len(heard_in_training(found)) == len(takes(found)) == 800
    take = Take(speaker("en", FIRST_TRAINING_SPEAKER), "yes")
    clip = Utterance("en-1000000/test-0000", take, take.text)
    trained = Clients(["en-1000000"], lambda key: ClientData(key, (), (clip,)))
    assert heard_in_training(trained) == [take]


def training_takes(kind: str, start: int):
    from training.pool import _takes

    return _takes(kind, start)


@pytest.mark.parametrize("kind", ["sentences", "words"])
def test_training_takes_are_disjoint_from_what_a_scenario_can_have(kind):
    for start in (0, 500, 30_000):
        trained = list(training_takes(kind, start))
        assert len(trained) == 500
        people = [take.speaker for take in trained]
        assert len({who.key for who in people}) == 500  # each a speaker of its own
        assert min(who.number for who in people) >= FIRST_TRAINING_SPEAKER + start
        assert not {who.variant for who in people} & UNHEARD_VARIANTS
        texts = {take.text for take in trained}
        if kind == "words":
            assert texts == set(WORDS)
        else:
            assert {role_of(text) for text in texts} == {"training"}
            assert all(_taught().fullmatch(text) for text in texts)
            clips = clients(corpus("gender", tuning=200, test=200, speakers=400), start)
            assert not texts & {take.text for take in takes(clips)}


RESERVED = [
    ({"first": 999_999, "speakers": 1}, False),
    ({"first": 999_999, "speakers": 2}, True),
    ({"first": 1_000_000, "speakers": 1}, True),
    ({"first": 999_990, "speakers": 20, "languages": ["en", "fr"]}, False),
    ({"first": 999_990, "speakers": 21, "languages": ["en", "fr"]}, True),
    ({"first": 999_990, "speakers": 5, "genders": ["male"]}, False),
    ({"first": 999_990, "speakers": 6, "genders": ["male"]}, True),
    ({"first": 999_998, "speakers": 1, "genders": ["female"]}, False),
    # The pair that 999,999 belongs to began before it: the next whole one is training's.
    ({"first": 999_999, "speakers": 1, "genders": ["female"]}, True),
    ({"first": 10**6, "speakers": 1}, True),
]


@pytest.mark.parametrize("group_by", ["speaker", "gender", "language"])
def test_speakers_that_were_heard_in_training_are_refused(group_by):
    for people, fails in RESERVED:
        chosen = corpus(group_by, **people)
        if fails:
            with pytest.raises(FedsimError, match=r"1,000,000 on .*; lower first or speakers"):
                clients(chosen)
        else:
            assert max(t.speaker.number for t in takes(clients(chosen))) < FIRST_TRAINING_SPEAKER


# --- bad input in a scenario file: the line and the key of each mistake


MISTAKES = [
    ("first: 999960", "first: -1", "10: corpus.population.first is -1: must be at least 0"),
    ("speakers: 40", "speakers: 0", "9: corpus.population.speakers is 0: must be at least 1"),
    ("speakers: 40", "speakers: some", "9: corpus.population.speakers is 'some'"),
    ("first: 999960", "frist: 1", "10: unknown key 'frist' in corpus.population: did you mean"),
    ("kind: voices", "path: .", "8: corpus.population: "),
    ("kind: voices", "kind: voices\n  path: x", "5: corpus.path: "),
    ("kind: voices", "kind: voices\n  max_seconds: 3", "5: corpus.max_seconds: "),
    ("kind: voices", "kind: voices\n  convert: true", "5: corpus.convert: "),
    ("population:\n    speakers: 40\n    first: 999960", "split: test", ": corpus"),
    ("first: 999960", "topics: [music, words]", "10: corpus.population.topics: words"),
    ("first: 999960", "languages: [en, fr, en]", "10: corpus.population.languages.2: 'en'"),
    ("first: 999960", "languages: []", "10: corpus.population.languages is an empty list"),
    ("first: 999960", "genders: [femal]", "10: corpus.population.genders.0 is 'femal'"),
    (
        "first: 999960",
        "sentences: x.txt\n    languages: [en, fr]",
        "11: corpus.population.languages: a sentence list",
    ),
]


def test_a_mistake_in_a_scenario_is_one_line(scenario):
    for old, new, text in MISTAKES:
        path = scenario(old, new)
        with pytest.raises(FedsimError, match=re.escape(text)) as caught:
            load_scenario(path)
        assert str(caught.value).startswith(f"{path}:")
        assert "\n" not in str(caught.value)


def test_a_folder_needs_a_path(scenario):
    path = scenario("kind: voices", "kind: folder")
    with pytest.raises(FedsimError, match=r"'folder' needs .*path: add"):
        load_scenario(path)


def test_a_scenario_of_voices_loads_and_comes_back(scenario, tmp_path):
    loaded = load_scenario(scenario(), ["corpus.population.topics=words", "seed=3"])
    people = loaded.corpus.population
    assert people is not None
    assert (people.speakers, people.first, people.topics) == (40, 999960, ("words",))
    assert (people.languages, people.genders) == (("en",), ("female", "male"))
    again = tmp_path / "again.yaml"
    again.write_text(loaded.to_yaml())
    assert load_scenario(again) == loaded


def test_a_sentence_list_lies_beside_its_scenario(scenario, tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text("\n".join(SENTENCES))
    path = scenario("first: 999960", "sentences: list.txt")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = load_scenario(path)
    assert loaded.corpus.population is not None
    assert loaded.corpus.population.sentences == str(tmp_path / "list.txt")
    assert {t.text for t in takes(clients(loaded.corpus))} <= set(SENTENCES)
