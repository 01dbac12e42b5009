"""The most frequent words of a language: from the package wordfreq, or from a text of one's own."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from fedsim.base.files import read_text
from fedsim.errors import FedsimError, nearest

MAX_TEXT = 2**28
"""Bytes of a text whose words are counted."""
EXTRA = "fedsim-speech[vocabulary]"
_WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*['’]?")
_LISTS = {"no": "nb", "nn": "nb", "tl": "fil", "hr": "sh", "bs": "sh"}
"""Whisper's code of a language -> wordfreq's, where they differ."""
_LATIN = ("LATIN",)
_SCRIPTS = {
    **dict.fromkeys(("ba", "be", "bg", "kk", "mk", "mn", "ru", "tg", "tt", "uk"), ("CYRILLIC",)),
    **dict.fromkeys(("ar", "fa", "ps", "sd", "ur"), ("ARABIC",)),
    **dict.fromkeys(("he", "yi"), ("HEBREW",)),
    **dict.fromkeys(("hi", "mr", "ne", "sa"), ("DEVANAGARI",)),
    **dict.fromkeys(("as", "bn"), ("BENGALI",)),
    **dict.fromkeys(("zh", "yue"), ("CJK",)),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL",),
    "sr": ("CYRILLIC", "LATIN"),
    "uz": ("CYRILLIC", "LATIN"),
    "am": ("ETHIOPIC",),
    "bo": ("TIBETAN",),
    "el": ("GREEK",),
    "gu": ("GUJARATI",),
    "hy": ("ARMENIAN",),
    "ka": ("GEORGIAN",),
    "km": ("KHMER",),
    "kn": ("KANNADA",),
    "lo": ("LAO",),
    "ml": ("MALAYALAM",),
    "my": ("MYANMAR",),
    "pa": ("GURMUKHI",),
    "si": ("SINHALA",),
    "ta": ("TAMIL",),
    "te": ("TELUGU",),
    "th": ("THAI",),
}
"""Language -> the first words of its letters' Unicode names; Latin where it is not listed."""


def frequent_words(language: str, count: int, file: str | None = None) -> tuple[str, ...]:
    """Return up to `count` words of a language in lower case, the most frequent first.

    Args:
        language: a code such as "it".
        count: maximum number of words; a list may be shorter.
        file: a UTF-8 text in the language, of which the words are counted; None for wordfreq.

    Raises:
        FedsimError: if wordfreq is not installed or has no list of the language, or the file
            cannot be read or is in another script.
    """
    if file:
        return _of_file(file, language)[:count]
    return listed_words(language, count, "model.vocabulary", "name a text of it in words_from")


def listed_words(language: str, count: int, setting: str, otherwise: str) -> tuple[str, ...]:
    """Return up to `count` words of a language in lower case, the most frequent first, of wordfreq.

    Args:
        language: a code such as "it".
        count: maximum number of words; a list may be shorter.
        setting: the key of the scenario that needs them, for errors.
        otherwise: what to do without a list, for errors.

    Raises:
        FedsimError: if wordfreq is not installed or has no list of the language.
    """
    try:
        import wordfreq
    except ImportError:
        raise FedsimError(
            f"{setting}: lists of frequent words come from the package wordfreq, which is not"
            f" installed; install {EXTRA}, or {otherwise}"
        ) from None
    code, known = _LISTS.get(language, language), wordfreq.available_languages("best")
    if code not in known:
        raise FedsimError(
            f"{setting}: wordfreq has no word list of language {language!r}:"
            f" {nearest(code, known)}; {otherwise}"
        )
    return tuple(wordfreq.top_n_list(code, count))


@lru_cache(maxsize=8)
def _of_file(file: str, language: str) -> tuple[str, ...]:
    try:
        text = read_text(Path(file), MAX_TEXT)
    except FedsimError as error:
        raise FedsimError(f"model.vocabulary.words_from: {error}") from None
    words = count_words([text])
    if not words:
        raise FedsimError(
            f"model.vocabulary.words_from: {file} has no words; name a text in language"
            f" {language!r}"
        )
    _check_script(words, language, file)
    return words


def count_words(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the words of texts in lower case, the most frequent first, then by alphabet."""
    counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word)))


def _check_script(words: Sequence[str], language: str, file: str) -> None:
    """Raise `FedsimError` if most words are in a script that the language is not written in."""
    expected = _SCRIPTS.get(language, _LATIN)
    found = Counter(unicodedata.name(word[0], "?").split()[0] for word in words)
    if 2 * sum(found[script] for script in expected) < len(words):
        script, _ = found.most_common(1)[0]
        raise FedsimError(
            f"model.vocabulary.words_from: {file} is mostly in {script.title()}, and language"
            f" {language!r} is written in {expected[0].title()}; name a text in that language"
        )
