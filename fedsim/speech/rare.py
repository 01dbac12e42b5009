"""Which words of a reference are rare: those beyond the most frequent words of its language.

Rare words (names, terms) carry much of what a person says, and an error rate of all words hides
them: few of the words that are spoken are rare.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from fedsim.errors import FedsimError
from fedsim.speech.languages import language_code
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
        language: a code (`it`, `ita`), a locale (`it_IT`) or an English name.
        beyond: number of frequent words.
        text_normalizer: of the scenario.

    Raises:
        FedsimError: if wordfreq is not installed; for a missing language, one that it has no list
            of, and one whose lists are not of what stands between spaces.
    """
    frequent = _frequent(_code_of(language), beyond, text_normalizer)

    def is_rare(word: str) -> bool:
        if any(map(str.isdigit, word)):
            return False
        return not frequent.issuperset(basic(word).split())

    return is_rare


def _code_of(language: str | None) -> str:
    """Return the code of a language whose words can be rare.

    Raises `FedsimError` for a missing language, and for one whose words are not set apart.
    """
    code = language_code(language)
    if code is None:
        raise FedsimError(
            f"{SETTING}: which words are rare depends on the language, and none is given; give the"
            f" clips a language (corpus.columns.language), or remove {SETTING}"
        )
    if is_unspaced(code):
        raise FedsimError(
            f"{SETTING}: language {language!r} is written without spaces between words; {_REMEDY}"
        )
    if code == "ko":
        raise FedsimError(
            f"{SETTING}: lists of Korean are of parts of words, not of what stands between spaces;"
            f" {_REMEDY}"
        )
    return code


@lru_cache(maxsize=64)  # more than there are languages
def _frequent(language: str, beyond: int, text_normalizer: str) -> frozenset[str]:
    normalize = normalizer(text_normalizer)
    words = listed_words(language, beyond, SETTING, _REMEDY)
    return frozenset(part for word in words for part in basic(normalize(word)).split())
