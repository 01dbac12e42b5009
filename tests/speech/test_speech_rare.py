"""Errors on rare words: by hand, and against every optimal alignment."""

from __future__ import annotations

import sys

import jiwer
import pytest
import wordfreq
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples

from fedsim.errors import FedsimError
from fedsim.speech.normalizers import normalizer
from fedsim.speech.rare import rarity
from fedsim.speech.scoring import Errors, count_errors, total


def rare_of(text, beyond=5_000, language="en", texts="basic"):
    """The rare words of a text."""
    is_rare = rarity(language, beyond, texts)
    return [word for word in normalizer(texts)(text).split() if is_rare(word)]


def counted(pairs, is_rare):
    errors = count_errors([r for r, _ in pairs], [h for _, h in pairs], is_rare=is_rare)
    return errors.rare_errors, errors.rare_words


def test_by_hand():
    rare = {"zeppelin", "quokka"}.__contains__
    for reference, hypothesis, wrong, of in (
        ("play the zeppelin song", "play the zeppelin song", 0, 1),
        ("play the zeppelin song", "play the separate song", 1, 1),  # substituted
        ("play the zeppelin song", "play the song", 1, 1),  # deleted
        ("play the zeppelin song", "lay a zeppelin long", 0, 1),  # the others are wrong
        ("play the song", "play the zeppelin song", 0, 0),  # an insertion belongs to no word
        ("quokka and quokka", "quokka and", 1, 2),  # every occurrence counts
        ("zeppelin quokka", "", 2, 2),
        ("Zeppelin, QUOKKA!", "zeppelin koala", 1, 2),  # normalized first
        ("", "zeppelin", 0, 0),
    ):
        assert counted([(reference, hypothesis)], rare) == (wrong, of), (reference, hypothesis)
    several = [("a quokka", "a quokka"), ("", "quokka"), ("zeppelin", "a"), ("a b", "a b")]
    assert counted(several, rare) == (1, 2)


def test_without_a_request_nothing_else_changes():
    pair = ["play the zeppelin"], ["play zeppelin song"]
    plain, both = count_errors(*pair), count_errors(*pair, is_rare="the".__eq__)
    assert (plain.rare_errors, plain.rare_words) == (0, 0)
    assert both == Errors(**{**vars(plain), "rare_errors": 1, "rare_words": 1})
    assert total([both, both]).rare_words == 2


def fewest(reference, hypothesis, is_rare, sign):
    """(errors, rare errors) of the optimal alignment with the fewest rare errors (sign 1), or of
    the one with the most (sign -1): the textbook's table of pairs."""

    def cost(word):
        return sign * is_rare(word)

    def plus(cell, errors, rare=0):
        return cell[0] + errors, cell[1] + rare

    row = [(j, 0) for j in range(len(hypothesis) + 1)]
    for word in reference:
        last, row[0] = row[0], plus(row[0], 1, cost(word))
        for j, heard in enumerate(hypothesis, 1):
            same = plus(last, 0) if word == heard else plus(last, 1, cost(word))
            last = row[j]
            row[j] = min(plus(row[j], 1, cost(word)), plus(row[j - 1], 1), same)
    return row[-1][0], sign * row[-1][1]


WORDS = st.lists(st.sampled_from(["a", "b", "rare", "seldom", "c"]), max_size=6)
few = settings(max_examples=examples(150), deadline=None, derandomize=True, database=None)


@few
@given(WORDS.filter(bool), WORDS)
def test_they_are_those_of_an_optimal_alignment(reference, hypothesis):
    """Several alignments may be optimal; jiwer's is one of them."""
    rare = {"rare", "seldom"}.__contains__
    pair = [(" ".join(reference), " ".join(hypothesis))]
    wrong, of = counted(pair, rare)
    assert of == sum(map(rare, reference))
    least, most = (fewest(reference, hypothesis, rare, sign) for sign in (1, -1))
    errors = jiwer.process_words(*pair[0])
    assert least[0] == most[0] == errors.substitutions + errors.deletions + errors.insertions
    assert least[1] <= wrong <= most[1]
    # Every word is rare or is not: together they are the errors that belong to a word.
    others = counted(pair, lambda word: not rare(word))
    assert wrong + others[0] == errors.substitutions + errors.deletions
    assert of + others[1] == len(reference)


def test_words_beyond_the_most_frequent():
    for beyond in (10, 100, 1_000):
        listed = wordfreq.top_n_list("en", 1_500)
        alphabetic = [word for word in listed if word.isalpha()]
        found = rare_of(" ".join(alphabetic), beyond)
        frequent = {part for word in listed[:beyond] for part in word.replace("'", " ").split()}
        assert found == [word for word in alphabetic if word not in frequent]
    assert rare_of("turn the lights on in the conservatory") == ["conservatory"]
    assert rare_of("accendi la luce della cucina", 1_000, "it") == ["accendi", "cucina"]


@pytest.mark.parametrize("texts", ["basic", "english", "none"])
def test_the_normalizer_makes_no_word_rare(texts):
    """Case, punctuation and contractions: of none of these is a frequent word rare."""
    assert rare_of("Don't you know? It's HERE. We're not; they've gone", texts=texts) == []
    assert len(rare_of("The Zeppelin, please!", texts=texts)) == 1


def test_numbers_are_not_rare():
    """Lists have no numbers of several digits, so that nothing is known of them."""
    assert rare_of("twenty one thousand and 3", texts="english") == []
    assert rare_of("call 4711 on channel b52") == []


def test_names_of_a_language_are_one():
    for name in ("it", "ita", "it_IT", "it-CH", "Italian"):
        assert rare_of("accendi la luce", 1_000, name) == ["accendi"]


@pytest.mark.parametrize(
    ("language", "problem"),
    [
        (None, "depends on the language, and none is given; give the clips a language"),
        ("yo", "no word list of language 'yo': .*; remove rare_beyond, or choose"),
        ("zh", "'zh' is written without spaces between words; remove rare_beyond"),
        ("japanese", "'japanese' is written without spaces"),
        ("ko", "lists of Korean are of parts of words"),
        ("kor", "lists of Korean are of parts of words"),
        ("klingon", "no word list of language 'klingon'"),
    ],
)
def test_languages_whose_words_cannot_be_rare(language, problem):
    with pytest.raises(FedsimError, match=f"^rare_beyond: .*{problem}"):
        rarity(language, 100, "basic")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    remedy = r"rare_beyond: .* not installed; install fedsim-speech\[vocabulary\], or remove"
    with pytest.raises(FedsimError, match=remedy):
        rarity("en", 101, "basic")
