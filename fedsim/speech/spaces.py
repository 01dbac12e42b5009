"""Whether a client's language is written without spaces: its words then cannot be counted."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

from fedsim.speech.clips import ClientData

UNSPACED = frozenset(
    {
        *("zh", "zho", "chi", "cmn", "yue", "wuu", "chinese", "mandarin", "cantonese"),
        *("ja", "jpn", "japanese"),
        *("th", "tha", "thai"),
        *("lo", "lao"),
        *("km", "khm", "khmer"),
        *("my", "mya", "bur", "burmese", "myanmar"),
        *("bo", "bod", "tib", "tibetan", "dz", "dzo", "dzongkha"),
    }
)
"""Languages written without spaces between words: ISO 639 codes and English names."""
_SCRIPTS = frozenset(
    {
        *("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"),
        *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"),
    }
)
"""Scripts of these languages: the first word of their letters' names in Unicode."""
_LETTERS = 200
"""Letters that are looked at."""


def is_unspaced(language: str) -> bool:
    """Return whether a language is written without spaces, by its code or English name.

    Only the first part of a code counts: `zh-CN`, `cmn_hans_cn`.
    """
    return re.split(r"[-_ ]", language.lower(), maxsplit=1)[0] in UNSPACED


def writes_unspaced(client: ClientData) -> bool | None:
    """Return whether a client's language is written without spaces; None if it cannot be known.

    By the language, or where that does not say so by the script of most letters of its references.
    """
    if client.language and is_unspaced(client.language):
        return True
    letters = [c for u in client.test for c in (u.text or "")[:_LETTERS] if c.isalpha()]
    if letters:
        letters = letters[:_LETTERS]
        return 2 * sum(map(_is_unspaced_letter, letters)) > len(letters)
    return False if client.language else None


def is_segmented(client: ClientData) -> bool:
    """Return whether references have spaces between letters that are written without."""
    words = (pair for u in client.test for pair in pairwise((u.text or "").split()))
    return any(_is_unspaced_letter(a[-1]) and _is_unspaced_letter(b[0]) for a, b in words)


def _is_unspaced_letter(letter: str) -> bool:
    return not letter.isascii() and unicodedata.name(letter, "").split(" ")[0] in _SCRIPTS
