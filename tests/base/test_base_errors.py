"""Typing mistakes: a hint is given for them, and for nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import misspelled

CLASSES = ("Wav2Vec2ForCTC", "HubertForCTC", "SEWForCTC", "WhisperForConditionalGeneration")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("Wav2Vec2FroCTC", "Wav2Vec2ForCTC"),
        ("Wav2Vec2ForCTc", "Wav2Vec2ForCTC"),
        ("Wave2Vec2ForCTC", "Wav2Vec2ForCTC"),
        ("HubrtForCTC", "HubertForCTC"),
        ("LasrForCTC", None),  # another model
        ("SEWDForCTCs", "SEWForCTC"),
        ("Wav2Vec2ForXVector", None),  # another head
        ("Wav2Vec2ForCTC", None),  # not a mistake
        ("", None),
        ("x" * 1000, None),
    ],
)
def test_typing_mistakes(word, meant):
    assert misspelled(word, CLASSES) == meant


def edited(word):
    """All words that one edit makes of it."""
    for i in range(len(word) + 1):
        yield word[:i] + "x" + word[i:]
        if i < len(word):
            yield word[:i] + word[i + 1 :]
            yield word[:i] + "x" + word[i + 1 :]
        if i + 1 < len(word):
            yield word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def test_every_single_edit_is_found():
    word = "HubertForCTC"
    assert all(misspelled(one, [word]) == word for one in set(edited(word)) - {word})


@given(st.text("abcd", min_size=4, max_size=9), st.text("wxyz", min_size=4, max_size=9))
def test_other_words_are_not_mistakes(word, known):
    assert misspelled(word, [known]) is None
