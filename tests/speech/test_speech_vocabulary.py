"""Word lists, and the tokens that they keep: by hand, by brute force, and mistakes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import toys
import vocabulary_toys
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import examples

from fedsim.errors import FedsimError
from fedsim.speech.models import load_model
from fedsim.speech.vocabulary import filled, token_lists, vocabulary_of
from fedsim.speech.words import count_words, frequent_words

FIRST = 256 + len(toys.whisper_special())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(vocabulary_toys.save(tmp_path_factory.mktemp("words") / "whisper"))


def ids(model, *names):
    vocabulary = model.tokenizer.get_vocab()
    return {vocabulary[vocabulary_toys.write_bytes(name)] for name in names}


def test_words_of_a_text():
    """Lower case, most frequent first, equal ones by alphabet; apostrophes and hyphens inside."""
    text = "L'altro giorno un gatto, un Cane: un e-mail! 3 gatto_nero"
    assert count_words([text, "un gatto"]) == (
        *("un", "gatto", "cane", "e-mail", "giorno", "l'altro", "nero"),
    )


def test_tokens_by_hand(model):
    """Of two words; one of them is in the list for the reserve only."""
    lists = token_lists(model.tokenizer, ("casa", "gatto", "cane"), 2, 3, 400)
    assert set(np.flatnonzero(lists.kept)) == {
        *range(FIRST),
        *ids(model, "casa", " casa", "gatto", " gatto"),
    }
    # "Cane" is spelled in bytes; after the last word the lowest numbers follow.
    assert lists.more[:2] == tuple(model.tokenizer.get_vocab()[name] for name in ("cane", "Ġcane"))
    assert lists.more[2] == FIRST


@settings(max_examples=examples(50), deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=40),
    st.lists(st.integers(0, 60), max_size=30),
    st.integers(0, 20),
)
def test_the_reserve(kept, following, reserve):
    """As many as asked for, in order, each once, none that is kept already."""
    mask = np.array(kept)
    new = [t for t in dict.fromkeys(following) if t < len(kept) and not kept[t]][:reserve]
    found = filled(mask, following, reserve)
    assert set(np.flatnonzero(found)) == set(np.flatnonzero(mask)) | set(new)
    assert list(mask) == kept  # what was given is not changed


def test_the_number_of_rows_depends_on_no_transcript(model, tmp_path):
    (tmp_path / "it.txt").write_text("casa cane gatto")
    tokens = sorted(ids(model, "perro", "zorro", " perro"))
    for words, own in itertools.product((1, 2, 3, 9), (0, 1, 4, 5_000)):
        chosen = vocabulary_of(model, words, own, str(tmp_path / "{language}.txt"))
        default = chosen.rows("it")
        for written in ([], tokens[:1], tokens):
            assert chosen.own_rows("it", [np.array(written, int)]).count == default.count
    assert default.kept.all()  # more rows than there are


def test_names_of_a_language_are_one(model, tmp_path):
    (tmp_path / "it.txt").write_text("casa")
    chosen = vocabulary_of(model, 1, 0, str(tmp_path / "{language}.txt"))
    assert chosen.rows("it_IT").key == chosen.rows("Italian").key == chosen.rows("it").key


@pytest.mark.parametrize("language", ["en", "es", "fr", "it", "ru", "de", "no", "ja", "zh"])
def test_wordfreq(language):
    words = frequent_words(language, 20)
    assert len(words) == 20
    assert words == frequent_words(language, 40)[:20]


def test_a_language_without_a_list():
    with pytest.raises(FedsimError, match=r"no word list of language 'yo'.*in words_from"):
        frequent_words("yo", 10)


@pytest.mark.parametrize(
    ("language", "text", "fits"),
    [
        ("it", "дом кот", False),
        ("ru", "дом кот", True),
        ("ru", "casa gatto", False),
        ("sr", "дом casa", True),
        ("ja", "ねこ 猫 ネコ", True),
        ("el", "σπίτι", True),
        ("it", "casa дом gatto", True),
    ],
)
def test_scripts(tmp_path, language, text, fits):
    path = tmp_path / "words.txt"
    path.write_text(text, encoding="utf-8")
    if fits:
        assert len(frequent_words(language, 10, str(path))) == len(text.split())
    else:
        with pytest.raises(FedsimError, match=f"and language '{language}' is written in"):
            frequent_words(language, 10, str(path))


def test_text_of_another_encoding(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("città".encode("latin-1"))
    with pytest.raises(FedsimError, match="the file is not UTF-8 text: save it as UTF-8"):
        frequent_words("it", 10, str(path))
