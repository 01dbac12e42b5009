"""How texts are normalized before they are compared: the functions behind `text_normalizer`."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from fedsim.errors import FedsimError
from fedsim.scenario.scores import BASIC, NORMALIZERS

Normalize = Callable[[str], str]
_SPELLING = Path(__file__).parent / "spelling" / "english.json"


def normalizer(name: str) -> Normalize:
    """Return the function behind a name of `text_normalizer`: text -> text with single spaces.

    Raises `FedsimError` for an unknown name; the function does if a plug-in returns no text.
    """
    if name == BASIC:
        return basic
    chosen = NORMALIZERS[name].normalize

    def normalized(text: str) -> str:
        found = chosen(text)
        if not isinstance(found, str):
            raise FedsimError(
                f"text_normalizer {name!r} returned {type(found).__name__}, not a text: correct the"
                f" plug-in, or choose another normalizer"
            )
        return " ".join(found.split())

    return normalized


def basic(text: str) -> str:
    """Return `text` as it is compared: Unicode NFKC, lower case, no punctuation, single spaces.

    As Whisper's basic normalizer does, which also removes text in brackets. Unlike there, combining
    marks are kept: in Indic scripts, Thai and others they are the vowels.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    text = re.sub(r"\([^)]+?\)", "", re.sub(r"[<\[][^>\]]*[>\]]", "", text))
    return " ".join("".join(" " if _is_symbol(c) else c for c in text).split())


def english(text: str) -> str:
    """Return `text` as Whisper's English normalizer gives it, the one of published English WERs.

    The spellings are those of Whisper (`spelling/README.md`), whichever model is tested.
    """
    return str(_whisper_english()(text))


def unchanged(text: str) -> str:
    """Return `text` with single spaces, and nothing else changed."""
    return " ".join(text.split())


def unspaced(text: str) -> str:
    """Return `text` as `basic` does, without any space."""
    return "".join(basic(text).split())


def has_word(text: str, normalize: Normalize = basic) -> bool:
    """Return whether anything of a text is left once it is normalized."""
    return (normalize is basic and text.isalnum()) or bool(normalize(text))


@cache
def _whisper_english() -> Any:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer(json.loads(_SPELLING.read_text(encoding="utf-8")))


def _is_symbol(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"
