"""Error counts against examples counted by hand, against jiwer and against a textbook distance."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.whisper.english_normalizer import (
    BasicTextNormalizer,
    EnglishTextNormalizer,
)

from fedsim.errors import FedsimError
from fedsim.speech.normalizers import basic as normalize
from fedsim.speech.normalizers import normalizer
from fedsim.speech.scoring import (
    Errors,
    count_correct,
    count_errors,
    interval,
    mark_looped,
    total,
)


def distance(a, b) -> int:
    """Levenshtein distance, the textbook's way."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def test_by_hand():
    for reference, hypothesis, errors, words, char_errors, chars in (
        ("turn left now", "turn left now", 0, 3, 0, 13),
        ("turn left now", "turn right now", 1, 3, 4, 13),  # a substitution: lef -> righ
        ("turn left now", "turn left", 1, 3, 4, 13),  # a deletion, and its space
        ("turn left", "turn to left", 1, 2, 3, 9),  # an insertion
        ("turn left now", "", 3, 3, 13, 13),
        ("a b c", "b c d e", 3, 3, 5, 5),  # a lost, d and e too many
        ("one two", "two one", 2, 2, 6, 7),
    ):
        assert distance(reference, hypothesis) == char_errors
        counted = count_errors([reference], [hypothesis])
        assert counted == Errors(1, errors, words, char_errors, chars)


def test_counts_are_sums_over_clips():
    references = ["turn left", "go", "stop here please"]
    hypotheses = ["turn left", "no go", "stop"]
    counted = count_errors(references, hypotheses)
    assert (counted.clips, counted.errors, counted.words) == (3, 3, 6)
    assert counted == total(
        [count_errors([r], [h]) for r, h in zip(references, hypotheses, strict=True)]
    )


def test_an_error_count_may_exceed_the_words():
    assert count_errors(["yes"], ["no no no no"]).errors == 4


def test_an_empty_reference_counts_insertions():
    for reference in ("", "   ", "...", "[noise]", "?!"):
        assert count_errors([reference], ["two words"]) == Errors(1, 2, 0, 9, 0)
        assert count_errors([reference], [""]) == Errors(1)
        mixed = count_errors([reference, "go"], ["two words", "go"])
        assert (mixed.errors, mixed.words) == (2, 1)


def test_nothing_at_all():
    assert count_errors([], []) == Errors(0)


def test_normalize():
    for text, expected in (
        ("Turn LEFT, now!", "turn left now"),
        ("  two\t spaces \n", "two spaces"),
        ("Où est-il?", "où est il"),
        ("GRÜSSE aus Köln", "grüsse aus köln"),
        ("Año nuevo", "año nuevo"),
        ("Ещё раз, пожалуйста.", "ещё раз пожалуйста"),
        ("[beep] hello (quietly)", "hello"),
        ("\ufb01ve", "five"),  # a ligature: NFKC
    ):
        assert normalize(text) == expected


@settings(deadline=None)
@given(st.text(st.sampled_from("aAéÉßñœ ёЯж.,!?'-–()[]<>\"«»№%0９\n"), max_size=30))
def test_normalize_is_whispers_own_for_european_text(text):
    assert normalize(text) == BasicTextNormalizer()(unicodedata.normalize("NFKC", text)).strip()


def test_diacritics_count():
    """A lost accent is an error, a letter in two code points is not."""
    assert count_errors(["où"], ["ou"]).errors == 1
    assert count_errors(["cafe\u0301 cre\u0300me"], ["caf\u00e9 cr\u00e8me"]).errors == 0
    assert count_errors(["año"], ["ano"]).char_errors == 1


def test_vowel_signs_are_part_of_a_word():
    """In Indic scripts, Thai and others vowels are combining marks: they must not split words."""
    for word in ("नमस्ते", "สวัสดี", "தமிழ்", "שָׁלוֹם"):
        counted = count_errors([f"{word} {word}"], [f"{word} {word}"])
        assert counted.words == 2
        assert normalize(word) == normalize(word).replace(" ", "")


WORDS = st.lists(st.sampled_from(["a", "bb", "abc", "da", "yes", "nö"]), min_size=1, max_size=6)


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_equals_jiwer_and_the_textbook(pairs):
    references = [" ".join(r) for r, _ in pairs]
    hypotheses = [" ".join(h) for _, h in pairs]
    counted = count_errors(references, hypotheses)
    assert counted.errors == sum(distance(r, h) for r, h in pairs)
    assert counted.char_errors == sum(map(distance, references, hypotheses))
    assert counted.errors / counted.words == pytest.approx(jiwer.wer(references, hypotheses))
    assert counted.char_errors / counted.chars == pytest.approx(jiwer.cer(references, hypotheses))


TEXTS = st.text(
    st.sampled_from(
        "今日は良い天気です。你好，世界！สวัสดีครับก็ ปลาcolour's Hmm, um 21 $5 é\u3000\n<>()"
    )
    | st.characters(exclude_categories=["Cs"]),
    max_size=12,
)


@pytest.mark.parametrize("name", ["basic", "english", "none", "unspaced"])
@settings(deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_counts_are_jiwers_under_every_normalizer(name, pairs):
    """Of texts of any language: jiwer's own word and character rates of the normalized texts."""
    normalized = normalizer(name)
    counted = [count_errors([r], [h], normalized) for r, h in pairs]
    spoken = [(normalized(r), normalized(h)) for r, h in pairs if normalized(r)]
    kept = [c for c, (r, _) in zip(counted, pairs, strict=True) if normalized(r)]
    assert count_errors(*map(list, zip(*pairs, strict=True)), normalized) == total(counted)
    for (reference, hypothesis), one in zip(spoken, kept, strict=True):
        assert one.errors / one.words == pytest.approx(jiwer.wer(reference, hypothesis))
        assert one.char_errors / one.chars == pytest.approx(jiwer.cer(reference, hypothesis))
    if spoken:
        references, hypotheses = map(list, zip(*spoken, strict=True))
        sums = total(kept)
        assert sums.errors / sums.words == pytest.approx(jiwer.wer(references, hypotheses))
        assert sums.char_errors / sums.chars == pytest.approx(jiwer.cer(references, hypotheses))


def test_languages_without_spaces_by_hand():
    """One wrong character of a sentence is one wrong word of one: characters say more."""
    for reference, hypothesis, chars in (
        ("今日は良い天気です。", "今日は悪い天気です", 9),
        ("我想听音乐", "我想听音药", 5),
        ("สวัสดีครับ", "สวัสดีคราบ", 10),
    ):
        assert count_errors([reference], [hypothesis]) == Errors(1, 1, 1, 1, chars)
        assert count_errors([reference], [""]) == Errors(1, 1, 1, chars, chars)


def test_normalizers_by_hand():
    text = "Hmm, the Colour wasn't $20 -- it's [noise] twenty-one  Dr. Smith"
    for name, expected in (
        ("none", "Hmm, the Colour wasn't $20 -- it's [noise] twenty-one Dr. Smith"),
        ("basic", "hmm the colour wasn t 20 it s twenty one dr smith"),
        ("english", "the color was not $20 it is 21 doctor smith"),
        ("unspaced", "hmmthecolourwasnt20itstwentyonedrsmith"),
    ):
        assert normalizer(name)(text) == expected


ENGLISH = [
    *("one", "twenty", "half", "$", "5", "%", "dr's"),
    *("colour", "theatre", "won't", "Où,", "5½", "uh", "今日"),
]
WHISPER = EnglishTextNormalizer({"colour": "color", "theatre": "theater"})


@settings(deadline=None)
@given(st.lists(st.sampled_from(ENGLISH)))
def test_english_is_the_one_of_transformers(words):
    text = " ".join(words)
    assert normalizer("english")(text) == " ".join(WHISPER(text).split())


def test_a_normalizer_that_there_is_not():
    with pytest.raises(FedsimError, match="no text normalizer 'englsh': did you mean 'english'"):
        normalizer("englsh")


def test_as_many_hypotheses_as_references():
    with pytest.raises(ValueError, match="zip"):
        count_errors(["a"], [])
    with pytest.raises(ValueError, match="zip"):
        count_correct(["a"], [])


def test_classes():
    counted = count_correct(["yes", " No ", "STOP", "go"], ["yes", "no", "stop", "yes"])
    assert counted == Errors(clips=4, correct=3)
    assert count_correct(["straße"], ["STRASSE"]).correct == 1


def test_total():
    parts = [Errors(1, 2, 3, 4, 5), Errors(1, 1, 1, 1, 1), Errors(2, correct=1)]
    assert total(parts) == Errors(4, 3, 4, 5, 6, 1)
    assert total([]) == Errors(0)


def test_clips_that_looped_are_counted_apart_and_among_the_others():
    said, heard = ["left", "turn right now"], ["left left left", "turn right now"]
    plain = [count_errors([r], [h]) for r, h in zip(said, heard, strict=True)]
    first = mark_looped(plain[0])
    assert first == replace(plain[0], looped=1, looped_errors=2, looped_words=1)
    counted = total([first, plain[1]])
    assert (counted.clips, counted.errors, counted.words) == (2, 2, 4)
    assert (counted.looped, counted.looped_errors, counted.looped_words) == (1, 2, 1)
    assert replace(counted, looped=0, looped_errors=0, looped_words=0) == total(plain)


def test_interval_of_equal_clips_is_a_point():
    rng = np.random.default_rng(0)
    assert interval([Errors(1, 1, 4)] * 5, rng) == (0.25, 0.25)
    right, wrong = count_correct(["a"], ["a"]), count_correct(["a"], ["b"])
    assert interval([right] * 5, rng, "accuracy") == (1.0, 1.0)
    assert interval([wrong] * 5, rng, "accuracy") == (0.0, 0.0)


def test_interval_is_that_of_a_ratio_of_sums():
    """Two kinds of clip: the bootstrap's share of one kind is binomial, so its ends are known."""
    clips = [Errors(1, 1, 1)] * 20 + [Errors(1, 0, 1)] * 20
    low, high = interval(clips, np.random.default_rng(1))
    assert low == pytest.approx(0.5 - 1.96 * (0.25 / 40) ** 0.5, abs=0.03)
    assert high == pytest.approx(0.5 + 1.96 * (0.25 / 40) ** 0.5, abs=0.03)
    # A long clip weighs by its words: corpus WER is 10 / 110, not the mean of two rates.
    uneven = [Errors(1, 10, 10), Errors(1, 0, 100)]
    low, high = interval(uneven, np.random.default_rng(1))
    assert (low, high) == (0.0, 1.0)
    assert interval(clips, np.random.default_rng(1)) == interval(clips, np.random.default_rng(1))


def test_interval_where_no_word_was_spoken():
    low, high = interval([count_errors(["..."], ["a b"])] * 3, np.random.default_rng(0))
    assert np.isnan([low, high]).all()
