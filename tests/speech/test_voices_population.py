"""The corpus kind `voices`: the clients of a scenario, their texts, and what is reserved."""

from __future__ import annotations

import ctypes
import os
import re
from collections import Counter

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from properties import examples
from voice_toys import clients, corpus, takes

from fedsim.errors import FedsimError
from fedsim.scenario.corpus import TOPICS, CorpusSettings
from fedsim.speech.clips import read_utterance
from fedsim.speech.eligible import require_clips
from fedsim.speech.voices import render
from fedsim.speech.voices.export import export_clips
from fedsim.speech.voices.sentences import WORD_SECONDS, WORDS, role_of
from fedsim.speech.voices.speaker import speaker
from fedsim.speech.voices.synthesizer import require_synthesizer

PUBLISHED = [
    ("en-000017/tuning-0000", "skip the next ninety rock music", 0),
    ("en-000017/tuning-0001", "please take the medicine before nine o clock", 1),
    ("en-000017/test-0000", "lock the curtain in the office", 1000000),
    ("en-000017/test-0001", "play some country tracks in the hall", 1000001),
]


@pytest.fixture
def listed(tmp_path):
    def write(*lines: str) -> str:
        path = tmp_path / f"list{len(list(tmp_path.iterdir()))}.txt"
        path.write_text("\n".join(lines), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def silent(monkeypatch):
    """Rendering fails: the synthesizer's library cannot be loaded."""

    def load(*_, **__):
        raise AssertionError("a clip was rendered")

    require_synthesizer()  # found before
    monkeypatch.setattr(ctypes, "CDLL", load)


# --- who the clients are


def test_one_client_per_speaker():
    settings = corpus(speakers=3, first=16)
    found = clients(settings)
    assert list(found) == ["en-000016", "en-000017", "en-000018"]
    for number, (key, client) in zip((16, 17, 18), found.items(), strict=True):
        who = speaker("en", number)
        assert (client.key, client.language) == (key, "en")
        assert (len(client.tuning), len(client.test)) == (4, 6)
        for clip in client.tuning + client.test:
            assert clip.source.speaker == who
            assert (clip.speaker, clip.gender, clip.language) == (key, who.gender, "en")
        assert {clip.text for clip in client.tuning} == {None}  # no label that could be read
        assert [clip.text for clip in client.test] == [clip.source.text for clip in client.test]
        require_clips(client, settings)
    keys = [clip.key for c in found.values() for clip in c.tuning + c.test]
    assert len(set(keys)) == 30


languages_spoken = st.lists(
    st.sampled_from(["en", "fr", "ja", "nl", "ru"]), min_size=1, max_size=3, unique=True
)
first_speakers = st.integers(0, 499_900).map(lambda pair: 2 * pair)


@given(first_speakers, languages_spoken)
@example(999_000, ["ru", "en", "ja"])
@settings(deadline=None, max_examples=9)
def test_languages_and_genders_are_balanced(first, languages):
    found = clients(corpus(speakers=40 * len(languages), first=first, languages=languages))
    people = {(who.language, who.number): who for who in (t.speaker for t in takes(found))}
    assert len(people) == len(found) == 40 * len(languages)
    counted = Counter((who.language, who.gender) for who in people.values())
    assert counted == {(lang, g): 20 for lang in languages for g in ("female", "male")}
    assert {n for _, n in people} == set(range(first, first + 40))
    assert list(found) == sorted(found)


@given(st.sampled_from(["female", "male"]), first_speakers)
@settings(deadline=None, max_examples=6)
def test_one_gender_only(gender, first):
    found = clients(corpus(speakers=30, first=first, genders=[gender], languages=["en", "nl"]))
    people = {(t.speaker.language, t.speaker.number): t.speaker.gender for t in takes(found)}
    assert len(people) == len(found) == 30
    assert set(people.values()) == {gender}
    assert Counter(language for language, _ in people) == {"en": 15, "nl": 15}
    assert all(first <= number < first + 30 for _, number in people)


def test_women_and_men_alone_are_those_of_both():
    both, women, men = (
        set(clients(corpus(speakers=n, genders=g)))
        for n, g in ((20, ["female", "male"]), (10, ["female"]), (10, ["male"]))
    )
    assert not women & men
    assert women | men == both


def test_groups_of_a_gender():
    for speakers in (4, 12, 60):
        found = clients(corpus("gender", tuning=4, test=10, speakers=speakers))
        assert list(found) == ["female", "male"]
        for gender, client in found.items():
            assert {clip.gender for clip in client.tuning + client.test} == {gender}
            assert client.language == "en"
            counted = Counter(clip.speaker for clip in client.test)
            assert len(counted) == min(10, speakers // 2)  # as many people as can be
            assert max(counted.values()) - min(counted.values()) <= 1
            assert len({clip.key for clip in client.tuning + client.test}) == 14


def test_groups_of_a_language():
    found = clients(corpus("language", speakers=30, languages=["pl", "de", "en"]))
    assert list(found) == ["de", "en", "pl"]
    for language, client in found.items():
        clips = client.tuning + client.test
        assert {clip.language for clip in clips} == {language} == {client.language}
        assert len({clip.speaker for clip in client.test}) == 6
    mixed = clients(corpus("gender", speakers=8, languages=["de", "en"]))["male"]
    assert mixed.language is None
    assert {clip.language for clip in mixed.test} == {"de", "en"}


def test_a_group_without_speakers_has_no_clips():
    settings = corpus("language", speakers=1, languages=["de", "en"])
    found = clients(settings)
    require_clips(found["de"], settings)
    with pytest.raises(FedsimError, match="'en' has no tuning clips"):
        require_clips(found["en"], settings)


# --- what they say


@given(
    st.integers(0, 2**32),
    st.sampled_from(["speaker", "gender", "language"]),
    st.lists(st.sampled_from(["en", "fr", "ja", "ru"]), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from(TOPICS), min_size=1, unique=True),
)
@settings(deadline=None, max_examples=examples(40))
def test_no_test_sentence_is_ever_tuned_on(seed, group_by, languages, topics):
    """Not by another client, and not in a run with another seed either: see the roles."""
    settings = corpus(group_by, first=seed % 1000, languages=languages, topics=topics)
    found = clients(settings, seed)
    tuning, test = ({t.text for t in takes(found, part)} for part in ("tuning", "test"))
    assert tuning
    assert test
    assert not tuning & test
    assert {role_of(text) for text in tuning} == {"tuning"}
    assert {role_of(text) for text in test} == {"test"}


LIST = [f"sentence number {i}" for i in range(24)]


@pytest.fixture(scope="module")
def sentence_list(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("list") / "list.txt"
    path.write_text("\n".join([*LIST, "", "# no sentence", *LIST[:5]]))
    return str(path)


@given(st.integers(0, 2**32), st.sampled_from(["speaker", "gender", "language"]))
@settings(deadline=None, max_examples=examples(40))
def test_a_list_is_cut_in_halves_for_all_clients(sentence_list, seed, group_by):
    found = clients(corpus(group_by, tuning=7, test=9, sentences=sentence_list), seed)
    tuning, test = ({t.text for t in takes(found, part)} for part in ("tuning", "test"))
    assert len(tuning) >= 7
    assert len(test) >= 9
    assert not tuning & test
    assert tuning | test <= set(LIST)
    for client in found.values():
        assert len({clip.source.text for clip in client.test}) == 9  # none twice
        assert len({clip.source.text for clip in client.tuning}) == 7


def test_another_seed_cuts_a_list_elsewhere(sentence_list):
    cut = [
        {t.text for t in takes(clients(corpus(test=12, sentences=sentence_list), seed), "test")}
        for seed in range(4)
    ]
    assert len({frozenset(half) for half in cut}) > 1
    assert all(len(half) == 12 for half in cut)


@given(st.integers(0, 2**32), st.sampled_from(["speaker", "gender"]))
@settings(deadline=None, max_examples=20)
def test_no_word_is_heard_in_the_same_take_twice(seed, group_by):
    """Words cannot be held out; how each was spoken can."""
    found = clients(corpus(group_by, tuning=40, test=80, topics="words"), seed)
    every = takes(found)
    assert len({(t.speaker.key, t.text, t.number) for t in every}) == len(every)
    assert {t.text for t in every} == set(WORDS)
    assert {t.seconds for t in every} == {WORD_SECONDS}
    for client in found.values():
        for part, times in ((client.tuning, {1, 2}), (client.test, {2, 3})):
            assert set(Counter(clip.source.text for clip in part).values()) == times
        assert sorted(clip.source.text for clip in client.test[:35]) == sorted(WORDS)


def test_words_are_recorded_for_a_second():
    client = clients(corpus(speakers=1, tuning=1, test=2, topics="words"))["en-000000"]
    for clip in client.test:
        assert len(read_utterance(clip)) == 16_000


def test_clips_differ_from_client_to_client_and_from_seed_to_seed():
    drawn = {
        (seed, key): tuple(clip.text for clip in client.test)
        for seed in (0, 1)
        for key, client in clients(corpus(speakers=8), seed).items()
    }
    assert len(set(drawn.values())) == 16


def test_the_population_is_the_published_one():
    """Results that were written down stay comparable: the draw must not change unnoticed."""
    client = clients(corpus(tuning=2, test=2, speakers=18), 7)["en-000017"]
    found = [(clip.key, clip.source.text, clip.source.number) for clip in client.tuning]
    found += [(clip.key, clip.source.text, clip.source.number) for clip in client.test]
    assert found == PUBLISHED


# --- a client depends on nobody else


def test_a_speaker_says_the_same_whoever_else_there_is():
    for change in (
        {"speakers": 12},
        {"speakers": 200},
        {"first": 10, "speakers": 3},
        {"speakers": 40, "languages": ["fr", "en"]},
    ):
        base = clients(corpus(speakers=20, first=0))["en-000011"]
        assert clients(corpus(**{"first": 0, **change}))["en-000011"] == base
        assert clients(corpus(speakers=20), select=("en-000011",))["en-000011"] == base
        assert clients(corpus(speakers=20), limit=12)["en-000011"] == base
        assert clients(corpus(speakers=20), seed=1)["en-000011"] != base


def test_one_gender_alone_says_what_it_says_among_both():
    who = speaker("en", 5)
    alone = clients(corpus(speakers=10, genders=[who.gender]))[who.key]
    assert alone == clients(corpus(speakers=10))[who.key]


def test_a_group_does_not_depend_on_the_other_groups():
    settings = corpus("language", speakers=20, languages=["de", "en"])
    both = clients(settings)
    assert clients(settings, select=("en",))["en"] == both["en"]
    assert clients(settings, limit=1)["de"] == both["de"]
    assert clients(corpus("language", speakers=10, languages=["en"]))["en"] == both["en"]
    wider = corpus("language", speakers=60, languages=["de", "en", "fr"])
    assert clients(wider)["en"] == both["en"]  # it had people enough


def test_more_clips_leave_the_others_as_they_were():
    for group_by in ("speaker", "gender"):
        key = {"speaker": "en-000003", "gender": "male"}[group_by]
        few = clients(corpus(group_by, tuning=3, test=5, speakers=40))[key]
        many = clients(corpus(group_by, tuning=8, test=12, speakers=40))[key]
        assert many.tuning[:3] == few.tuning
        assert many.test[:5] == few.test


def test_asking_twice_gives_the_same():
    found = clients(corpus(speakers=30))
    backwards = {key: found[key] for key in list(found)[::-1]}
    assert backwards == dict(found)


def test_select_and_limit():
    settings = corpus(speakers=30)
    assert list(clients(settings, limit=3)) == ["en-000000", "en-000001", "en-000002"]
    picked = clients(settings, select=("en-000009", "en-000004"))
    assert list(picked) == ["en-000004", "en-000009"]
    with pytest.raises(FedsimError, match=r"did you mean 'en-000029'\?"):
        clients(settings, select=("en-000291",))


# --- thousands of clients


@pytest.mark.parametrize("group_by", ["speaker", "gender", "language"])
def test_ten_thousand_speakers_open_at_once(group_by, silent):
    """Without making any of them, and a client without making those of others."""
    speaker.cache_clear()
    found = clients(corpus(group_by, speakers=10_000, languages=["en", "fr"]))
    assert len(found) == (10_000 if group_by == "speaker" else 2)
    assert speaker.cache_info().misses == 0  # nobody was made
    client = found[list(found)[-1]]
    assert len(client.test) == 6
    assert speaker.cache_info().misses < 100
    with pytest.raises(AssertionError, match="a clip was rendered"):
        read_utterance(client.test[0])


def test_ten_thousand_of_one_gender(silent):
    found = clients(corpus(speakers=10_000, genders=["male"]))
    assert len(found) == len(set(found)) == 10_000
    assert max(found) in ("en-019998", "en-019999")


def test_selected_clients_are_not_made_when_a_corpus_is_opened(silent):
    speaker.cache_clear()
    clients(corpus(speakers=200), select=tuple(f"en-{n:06d}" for n in range(100)))
    assert speaker.cache_info().misses == 0


def test_the_error_for_an_unknown_client_of_thousands_is_short():
    with pytest.raises(FedsimError, match=r"clients\.select names 'zoe'") as caught:
        clients(corpus(speakers=10_000), select=("zoe",))
    assert len(str(caught.value)) < 1000


# --- export


@pytest.mark.parametrize("extra", [{}, {"topics": "words"}, {"languages": ["ja", "en"]}])
def test_exported_clips_come_back_as_they_were(tmp_path, extra):
    found = clients(corpus(speakers=4, tuning=1, test=3, **extra), 5)
    assert export_clips(found, tmp_path / "new" / "clips") == 12
    there = tmp_path / "new" / "clips"
    folder = CorpusSettings(path=str(there), group_by="speaker", tuning_clips=1, test_clips=99)
    read = clients(folder)
    assert list(read) == list(found)
    for key, client in found.items():
        assert [clip.key for clip in read[key].test] == [f"{clip.key}.wav" for clip in client.test]
        for ours, theirs in zip(client.test, read[key].test, strict=True):
            np.testing.assert_array_equal(read_utterance(theirs), render(ours.source))
            for name in ("text", "speaker", "gender", "language"):
                assert getattr(theirs, name) == getattr(ours, name)
    wavs = sorted(there.rglob("*.wav"))
    assert len(wavs) == 12
    assert {soundfile.info(path).subtype for path in wavs} == {"PCM_16"}
    assert {soundfile.info(path).samplerate for path in wavs} == {16_000}


def test_exported_texts_are_quoted_where_they_must_be(tmp_path, listed):
    lines = ['well, "yes"', "no; no", "Ça va?", "it's, so, so", "a 'b' c", "über, alles"]
    found = clients(corpus(speakers=1, tuning=1, test=3, sentences=listed(*lines)))
    export_clips(found, tmp_path / "clips")
    folder = CorpusSettings(path=str(tmp_path / "clips"), group_by="speaker", test_clips=99)
    (read,) = clients(folder).values()
    (client,) = found.values()
    assert [clip.text for clip in read.test] == [clip.text for clip in client.test]


def test_an_export_keeps_what_is_there(tmp_path, silent):
    found = clients(corpus(speakers=1))
    (tmp_path / "mine.txt").write_text("kept")
    for path in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(FedsimError, match=rf"{path} .*; name a new folder"):
            export_clips(found, path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert (tmp_path / "mine.txt").read_text() == "kept"


def test_an_export_into_an_empty_folder(tmp_path):
    assert export_clips(clients(corpus(speakers=1, test=1)), tmp_path) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["en-000000", "metadata.csv"]


def test_an_export_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FedsimError, match=r"/file/clips: .*; name another folder") as caught:
        export_clips(clients(corpus(speakers=1)), tmp_path / "file" / "clips")
    assert "\n" not in str(caught.value)


# --- bad input


def refuse(found: CorpusSettings, match: str) -> None:
    """Check the error of a corpus, raised when it is opened or a client is made."""
    with pytest.raises(FedsimError, match=match) as caught:
        takes(clients(found))
    assert "\n" not in str(caught.value)


def test_an_unknown_language():
    refuse(corpus(languages=["en", "eng"]), r"'eng': did you mean 'en'\?")
    for group_by in ("speaker", "gender", "language"):
        refuse(corpus(group_by, languages=["xx"]), "'xx': known: ca, de, en,")


def test_a_language_is_not_a_path():
    for language in ("../sentences/en", "EN", "en ", "en.yaml", "/etc"):
        refuse(corpus(languages=[language]), re.escape(f"no voice speaks {language!r}: "))


def test_an_unknown_topic():
    refuse(corpus(topics=["musik"]), r"topic 'musik': did you mean 'music'\?")


def test_words_are_english():
    for languages in (["fr"], ["en", "ja"]):
        text = f"remove {languages[-1]!r} from languages, or choose other topics"
        refuse(corpus(topics="words", languages=languages), text)


def test_a_list_without_text_or_that_is_not_there(listed, tmp_path):
    path = listed("# nothing", "...", "")
    refuse(corpus(sentences=path), rf"sentence list {path} .*; write one sentence per line")
    missing = str(tmp_path / "nowhere.txt")
    refuse(corpus(sentences=missing), rf"sentence list {missing}: the file does not exist: check")


def test_a_list_that_is_too_short(listed):
    cases = [(11, "test", 6, 7), (9, "tuning", 4, 5), (1, "tuning", 0, 5), (2, "tuning", 1, 5)]
    for lines, part, has, asks in cases:
        path = listed(*(f"line {i}" for i in range(lines)))
        counts = {"tuning": 5, "test": 5} | {part: asks}
        text = rf"list {path} has {has} .*corpus.{part}_clips asks for {asks}: add sentences"
        refuse(corpus(**counts, sentences=path), text)


def test_a_list_that_is_just_long_enough(listed):
    found = clients(corpus(tuning=5, test=5, sentences=listed(*(f"line {i}" for i in range(10)))))
    assert len(takes(found)) == 60


def test_a_list_that_was_changed_is_read_anew(tmp_path):
    path = tmp_path / "list.txt"
    for changed, word in enumerate(("line", "row")):
        path.write_text("\n".join(f"{word} {i}" for i in range(10)))
        os.utime(path, (changed, changed))  # a clock too coarse to tell them apart is none of ours
        found = clients(corpus(tuning=5, test=5, sentences=str(path)))
        assert {take.text.split()[0] for take in takes(found)} == {word}


def test_a_sentence_in_other_capitals_is_the_same_sentence(listed):
    """Otherwise a client would be tested on what it was tuned on."""
    lines = [text for i in range(10) for text in (f"line {i}", f"Line {i}!")]
    found = clients(corpus(tuning=5, test=5, sentences=listed(*lines)))
    tuning, test = (
        {t.text.lower().strip("!") for t in takes(found, part)} for part in ("tuning", "test")
    )
    assert not tuning & test
