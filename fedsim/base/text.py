"""Text that is compared: one form for what looks and means the same."""

from __future__ import annotations

import unicodedata

_UNSEEN = ("Cc", "Cs", "Zl", "Zp")


def composed(text: str) -> str:
    """Return a text in Unicode's composed form (NFC), in which equal letters are equal bytes.

    An `é` may be one code point or an `e` with an accent, by the machine on which it was typed.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def has_control(text: str) -> bool:
    """Return whether a text has a control character, a line break or half a surrogate pair."""
    return not text.isprintable() and any(unicodedata.category(c) in _UNSEEN for c in text)
