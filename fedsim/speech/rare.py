"""Which words of a reference are rare: those beyond the most frequent words of its language.

Rare words (names, terms) carry much of what a person says, and an error rate of all words hides
them: few of the words that are spoken are rare.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from fedsim.errors import FedsimError
from fedsim.speech.normalizers import basic, normalizer
from fedsim.speech.spaces import is_unspaced
from fedsim.speech.words import listed_words

SETTING = "rare_beyond"
_REMEDY = f"remove {SETTING}, or choose clips of other languages"


def rarity(language: str | None, beyond: int, text_normalizer: str) -> Callable[[str], bool]:
    """Return a function that says whether a word of a normalized reference is rare.

    A word is rare if it is not among the `beyond` most frequent words of its language, of which
    wordfreq has lists. These are normalized as the references are; both are then compared as
    `basic` leaves them, so that neither case nor punctuation makes a word rare. A word with a digit
    is not rare: the lists have no numbers of several digits.

    Args:
        language: a code (`it`), a locale (`it_IT`) or an English name.
        beyond: number of frequent words.
        text_normalizer: of the scenario.

    Raises:
        FedsimError: if wordfreq is not installed; for a missing language, one that it has no list
            of, and one whose lists are not of what stands between spaces.
    """
    frequent = _frequent(language_code(language), beyond, text_normalizer)

    def is_rare(word: str) -> bool:
        if any(map(str.isdigit, word)):
            return False
        return not frequent.issuperset(basic(word).split())

    return is_rare


def language_code(language: str | None) -> str:
    """Return the code of a language whose words can be rare.

    Raises `FedsimError` for a missing language, and for one whose words are not set apart.
    """
    if not language:
        raise FedsimError(
            f"{SETTING}: which words are rare depends on the language, and none is given; give the"
            f" clips a language (corpus.columns.language), or remove {SETTING}"
        )
    if is_unspaced(language):
        raise FedsimError(
            f"{SETTING}: language {language!r} is written without spaces between words; {_REMEDY}"
        )
    word = language.strip().lower()
    short = re.split(r"[-_]", word, maxsplit=1)[0]
    if len(short) > 3:  # an English name
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        short = TO_LANGUAGE_CODE.get(word, word)
    if short == "ko":
        raise FedsimError(
            f"{SETTING}: lists of Korean are of parts of words, not of what stands between spaces;"
            f" {_REMEDY}"
        )
    return short


@lru_cache(maxsize=64)  # more than there are languages
def _frequent(language: str, beyond: int, text_normalizer: str) -> frozenset[str]:
    normalize = normalizer(text_normalizer)
    words = listed_words(language, beyond, SETTING, _REMEDY)
    return frozenset(part for word in words for part in basic(normalize(word)).split())
