"""The texts of speakers: twelve grammars, a fixed role for each sentence, and lists of users."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import FedsimError
from fedsim.scenario.corpus import TOPICS
from fedsim.speech.normalizers import basic
from fedsim.speech.voices.sentences import (
    ROLES,
    WORDS,
    draw_sentences,
    grammar,
    languages,
    read_sentences,
    role_of,
)
from fedsim.speech.voices.speaker import ACCENTS
from fedsim.speech.voices.synthesizer import SYNTHESIZER_RATE, synthesize

SLOT = re.compile(r"\{(\w+)\}")
LETTERS = {
    "ja": r"[\u3040-\u30ff ]+",  # kana: how a Chinese character is read, no synthesizer is sure of
    "ko": r"[\uac00-\ud7a3 ]+",
    "ru": r"[а-яё ]+",
}
LATIN = r"[a-zß-öø-ÿąćęłńóśźż '-]+"

PUBLISHED_ROLES = ["test", "training", "tuning", "training", "training", "tuning"]


def patterns(language: str, topics=TOPICS) -> list[re.Pattern]:
    """Return one regular expression for each template: what can be made of it, and no more."""
    spoken = grammar(language)
    words = {k: "|".join(map(re.escape, v)) for k, v in spoken.slots.items()}
    return [
        re.compile(
            "".join(
                f"(?:{words[part]})" if i % 2 else re.escape(part)
                for i, part in enumerate(SLOT.split(template))
            )
        )
        for topic in topics
        for template in spoken.topics[topic]
    ]


def first_sentence(template: str, language: str) -> str:
    return SLOT.sub(lambda slot: grammar(language).slots[slot[1]][0], template)


def test_every_language_has_voices_and_a_grammar():
    assert languages() == tuple(sorted(ACCENTS))
    assert "en" in languages()


def test_a_grammar_is_whole():
    for language in languages():
        spoken = grammar(language)
        assert set(spoken.topics) == set(TOPICS)
        used = {
            slot
            for lines in spoken.topics.values()
            for line in lines
            for slot in SLOT.findall(line)
        }
        assert used == set(spoken.slots)
        for lines in spoken.topics.values():
            assert len(lines) >= 5
            assert len(set(lines)) == len(lines)
        for name, words in spoken.slots.items():
            assert len(words) >= 2, name
            assert len(set(words)) == len(words), name
            assert all(isinstance(word, str) for word in words), name  # YAML's "no" is no text


def test_a_grammar_is_written_in_its_own_letters():
    """No digits, capitals or punctuation: what is scored is what is spoken."""
    for language in languages():
        letters = re.compile(LETTERS.get(language, LATIN))
        spoken = grammar(language)
        texts = [word for words in spoken.slots.values() for word in words]
        texts += [SLOT.sub("", line) for lines in spoken.topics.values() for line in lines]
        for text in texts:
            assert not text.strip() or letters.fullmatch(text), text
        for lines in spoken.topics.values():
            for line in lines:
                sentence = first_sentence(line, language)
                assert sentence == " ".join(sentence.split())


def test_every_template_is_spoken():
    for language in languages():
        for lines in grammar(language).topics.values():
            for line in lines:
                sentence = first_sentence(line, language)
                accent = ACCENTS[language][0]
                speech = synthesize(sentence, f"{accent}+f2", rate=180, pitch=50, pitch_range=50)
                seconds = len(speech.samples) / SYNTHESIZER_RATE
                # A letter that is not known is read out by its name, and takes its time.
                each = 0.22 if language in ("ja", "ko") else 0.14
                assert 0.4 < seconds < 1 + each * len(sentence), sentence
                assert np.abs(speech.samples.astype(int)).max() > 3000, sentence


def test_every_topic_has_enough_sentences_of_each_role():
    for language in languages():
        rng = np.random.default_rng(0)
        for role in ("training", "tuning", "test"):
            for topic in TOPICS:
                found = draw_sentences(language, (topic,), role, 60, rng)
                assert len(set(found)) == 60
            assert len(set(draw_sentences(language, TOPICS, role, 400, rng))) == 400


def test_sentences_are_of_the_grammar_and_of_their_role():
    for language in languages():
        for role in ("training", "tuning", "test"):
            drawn = draw_sentences(language, TOPICS, role, 200, np.random.default_rng(1))
            assert {role_of(sentence) for sentence in drawn} == {role}
            made = patterns(language)
            assert all(any(p.fullmatch(sentence) for p in made) for sentence in drawn)
            found = Counter()
            for topic in TOPICS:
                of_topic = patterns(language, (topic,))
                found[topic] = sum(any(p.fullmatch(s) for p in of_topic) for s in drawn)
            assert (
                min(found.values()) > 15
            )  # of 40; a small topic repeats itself, and repeats are dropped


def test_topics_are_kept_to():
    for topic in TOPICS:
        drawn = draw_sentences("en", (topic,), "test", 50, np.random.default_rng(2))
        made = patterns("en", (topic,))
        assert all(any(p.fullmatch(sentence) for p in made) for sentence in drawn)
        others = patterns("en", tuple(t for t in TOPICS if t != topic))
        assert not any(p.fullmatch(sentence) for p in others for sentence in drawn)


def test_every_template_and_word_is_drawn():
    drawn = draw_sentences("en", ("home", "music"), "training", 1500, np.random.default_rng(3))
    for made in patterns("en", ("home", "music")):
        assert any(made.fullmatch(sentence) for sentence in drawn), made.pattern
    spoken = " ".join(drawn)
    for slot in ("room", "genre", "colour", "opening"):
        assert all(word in spoken for word in grammar("en").slots[slot])


def test_a_seed_draws_the_same_sentences_and_another_others():
    first, same, other = (
        draw_sentences("en", TOPICS, "test", 40, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert first == same
    assert len(set(first) & set(other)) < 5
    fewer = draw_sentences("en", TOPICS, "test", 10, np.random.default_rng(5))
    assert fewer == first[:10]  # more clips, and the first ones stay


def test_roles_are_the_published_ones():
    """A sentence that a bundled model was trained on must stay a training sentence for ever."""
    sentences = ("turn on the lamp in the office", "dial one two three four five", "play some jazz")
    sentences += ("включи свет на кухне", "でんき つけて", "")
    assert [role_of(sentence) for sentence in sentences] == PUBLISHED_ROLES


def test_most_sentences_train_and_the_others_are_shared():
    found = Counter(role_of(f"sentence {i}") for i in range(20_000))
    assert found["training"] == pytest.approx(12_000, rel=0.03)
    assert found["tuning"] == pytest.approx(4_000, rel=0.05)
    assert found["test"] == pytest.approx(4_000, rel=0.05)
    assert set(ROLES) == {"training", "tuning", "test"}


@given(st.text())
def test_any_text_has_one_role(text):
    assert role_of(text) == role_of(text)
    assert role_of(text) in ROLES


def test_the_words_of_speech_commands():
    assert len(WORDS) == len(set(WORDS)) == 35
    assert {"yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"} < set(WORDS)
    assert {"zero", "nine", "backward", "forward", "follow", "learn", "visual"} < set(WORDS)


# --- bad input


def test_a_language_without_a_grammar():
    for language, hint in (
        ("eng", "did you mean 'en'?"),
        ("xx", "known: ca, de, en, es, fr, it, ja, ko,"),
    ):
        with pytest.raises(FedsimError, match=r"no voice speaks '\w+': ") as caught:
            grammar(language)
        assert hint in str(caught.value)


def test_an_unknown_topic():
    with pytest.raises(FedsimError, match=r"topic 'musik': did you mean 'music'\?"):
        draw_sentences("fr", ("home", "musik"), "test", 3, np.random.default_rng(0))


def test_more_sentences_than_there_are():
    with pytest.raises(FedsimError, match=r"timers .* 400 .*; ask for fewer clips or more topics"):
        draw_sentences("en", ("timers",), "tuning", 400, np.random.default_rng(0))


# --- a user's own list


@pytest.fixture
def listed(tmp_path):
    def write(text: str | bytes):
        path = tmp_path / "list.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_a_list_is_read_line_by_line(listed):
    text = "# what we say\n\n  open the door  \r\nÄpfel, bitte!\n...\nopen the door\n42\n\t\n"
    assert read_sentences(listed(text)) == ["open the door", "Äpfel, bitte!", "42"]


def test_a_list_from_an_editor_that_marks_the_byte_order(listed):
    assert read_sentences(listed("\ufeffopen it\nopen it\nclose it\n")) == ["open it", "close it"]
    assert read_sentences(listed("\ufeff# ours\nclose it\n")) == ["close it"]


def test_lines_that_sound_alike_are_one(listed):
    """Else a client could be tested on what it was tuned on."""
    text = "Open it!\nopen it\nopen, it\nopen this\nかぎ\nかき\nschon\nschön\n"
    assert read_sentences(listed(text)) == [
        "Open it!",
        "open this",
        "かぎ",
        "かき",
        "schon",
        "schön",
    ]


def test_a_list_without_a_text_that_could_be_spoken(listed):
    for text in ("", "\n\n", "# only a comment\n", "...\n?!\n -- \n", "😀\n"):
        path = listed(text)
        with pytest.raises(FedsimError, match=rf"{path} .*; write one sentence per line"):
            read_sentences(path)


def test_a_list_that_cannot_be_read(listed, tmp_path):
    for path in (tmp_path / "nowhere.txt", tmp_path, listed(b"caf\xe9\n")):
        words = r"does not exist: check|this is a folder: name|not UTF-8 text: save"
        with pytest.raises(FedsimError, match=words) as caught:
            read_sentences(path)
        assert str(caught.value).startswith(f"sentence list {path}:")
        assert "\n" not in str(caught.value)


def kept_lines(path):
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [line for line in lines if not line.strip().startswith("#")]


def test_brackets_are_not_read_and_not_scored(listed):
    """Scoring leaves out what stands in brackets: a reference must not lose words by it."""
    path = listed("(hello there)\ngood morning (sir)\ngood morning\n<b>\n(# x)\n")
    found = read_sentences(path)
    assert found == ["hello there", "good morning sir", "good morning", "b", "# x"]
    assert all(basic(text) for text in found)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=12))
@settings(deadline=None)
def test_any_list_gives_distinct_lines_of_its_own_or_one_sentence(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("list") / "list.txt"
    path.write_bytes("\n".join(lines).encode())
    spoken = any(any(c.isalnum() for c in line) for line in kept_lines(path))
    if not spoken:
        with pytest.raises(FedsimError, match="holds no text that could be spoken"):
            read_sentences(path)
        return
    found = read_sentences(path)
    assert len(set(found)) == len(found)
    lines = [" ".join(re.sub(r"[()<>\[\]]", " ", line).split()) for line in kept_lines(path)]
    for text in found:
        assert text in lines
        assert any(c.isalnum() for c in text)
